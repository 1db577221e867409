/* SPDX-License-Identifier: Apache-2.0
 *
 * XDP programs that do something to packets before they hand them to the socket of their queue: what a socket's
 * owner sees of that is tested in test_conformance_programs.py, which compiles this file.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MOVE 64         /* bytes; as in the test */
#define QUEUES 4

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

static __u64 seen;

static int deliver(struct xdp_md *ctx)
{
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
}

SEC("xdp.frags")
int unchanged(struct xdp_md *ctx)
{
	return deliver(ctx);
}

/* Every second packet, the first one first. */
SEC("xdp.frags")
int drop_half(struct xdp_md *ctx)
{
	return __sync_fetch_and_add(&seen, 1) & 1 ? deliver(ctx) : XDP_DROP;
}

SEC("xdp.frags")
int shrink_head(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, MOVE) ? XDP_ABORTED : deliver(ctx);
}

/* What is new in front is filled, so that it can be told from what was there. */
SEC("xdp.frags")
int grow_head(struct xdp_md *ctx)
{
	__u8 *data, *end;

	if (bpf_xdp_adjust_head(ctx, -MOVE))
		return XDP_ABORTED;
	data = (__u8 *)(long)ctx->data;
	end = (__u8 *)(long)ctx->data_end;
	if (data + MOVE > end)
		return XDP_ABORTED;
	for (int i = 0; i < MOVE; i++)
		data[i] = 0xa5;
	return deliver(ctx);
}

SEC("xdp.frags")
int shrink_tail(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_tail(ctx, -MOVE) ? XDP_ABORTED : deliver(ctx);
}

/* What is new at the end the kernel fills with zeros. Where its buffer has no room left behind the packet it
 * refuses, and the packet goes on as it is. */
SEC("xdp.frags")
int grow_tail(struct xdp_md *ctx)
{
	bpf_xdp_adjust_tail(ctx, MOVE);
	return deliver(ctx);
}

/* How many packets there were before, in front of each. */
SEC("xdp.frags")
int metadata(struct xdp_md *ctx)
{
	__u64 *meta;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*meta)))
		return XDP_ABORTED;
	meta = (__u64 *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return XDP_ABORTED;
	*meta = __sync_fetch_and_add(&seen, 1);
	return deliver(ctx);
}

char _license[] SEC("license") = "Apache-2.0";
