/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
 *
 * The kernel's end of a packet's way: give it to the XSK of the queue it arrived on.
 *
 * One such program per interface, attached once and kept: workers come and go by entries of `xsks`. Where a
 * queue has no entry, `fallback` (XDP_PASS or XDP_DROP) is the answer; it lives in a map so that it can
 * change without a new program. The rest of the way is csrc/forward.c.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "xdp_prog.h"

/* Resized before loading to the number of queues the interface has. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} fallback SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, XSKD_VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

/* Read by the loader before anything runs; in a section of its own so that it finds it by name. */
const volatile __u32 abi_version SEC(".rodata.abi") = XSKD_PROG_ABI;

static __always_inline void count(__u32 verdict)
{
	__u64 *packets = bpf_map_lookup_elem(&verdicts, &verdict);

	if (packets)
		(*packets)++;
}

SEC("xdp.frags")
int xskd(struct xdp_md *ctx)
{
	__u32 zero = 0, *configured = bpf_map_lookup_elem(&fallback, &zero);
	/* Only the two lowest bits are an action; the kernel refuses anything else in the flags. */
	int answer = configured && *configured == XDP_DROP ? XDP_DROP : XDP_PASS;
	int verdict = (int)bpf_redirect_map(&xsks, ctx->rx_queue_index, (__u64)answer);

	count(verdict == XDP_REDIRECT ? XSKD_REDIRECTED :
	      verdict == XDP_DROP     ? XSKD_NO_SOCKET_DROPPED : XSKD_NO_SOCKET_PASSED);
	return verdict;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
