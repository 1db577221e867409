/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
 *
 * The kernel's end of a packet's way: find the rule it meets, see that it is within its limits, and give it to
 * user space, straight to another interface, to the kernel, or to nobody.
 *
 * One such program per interface, attached once and kept: workers come and go by entries of `xsks`, rules by
 * the slot of `rules`, everything else by `settings`. Without rules no packet is parsed. The rest of the way is
 * csrc/forward.c.
 *
 * It must load with the daemon's rights (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON) and be written for the verifier of
 * Linux 6.1: bounded loops, every variable index masked, no helper that is newer.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "xdp_prog.h"
#include "maps.h"
#include "parse.h"
#include "classify.h"
#include "police.h"
#include "route.h"

_Static_assert(XSKD_UNPARSED == (int)XSKD_VERDICTS + (int)XSKD_UNROUTABLES, "behind the reasons");
_Static_assert(XSKD_COUNTS == XSKD_UNPARSED + 1, "the last");
_Static_assert(XSKD_RULE_WORDS * 64 == XSKD_MAX_RULES && XSKD_TALLIES == XSKD_MAX_RULES + 1, "one bit a rule");
_Static_assert(XSKD_DEFAULT == XSKD_MAX_RULES, "behind the rules");

/* A longer packet is taken to lie in several buffers: a lane that cannot have those leaves it to the XSK. */
#define XSKD_ONE_BUFFER 1522

/* Read by the loader before anything runs; in a section of its own so that it finds it by name. */
const volatile __u32 abi_version SEC(".rodata.abi") = XSKD_PROG_ABI;

static __always_inline const struct xskd_rules *rules_in_force(void)
{
	__u32 zero = 0;
	void *set = bpf_map_lookup_elem(&rules, &zero);

	return set ? bpf_map_lookup_elem(set, &zero) : 0;
}

/* The answer of the first rule a packet meets, or XSKD_ANSWERS and what became of it instead. */
static __always_inline __u32 judge(struct xdp_md *ctx, const struct xskd_rules *set, const struct packet *packet,
				   int parsed, __u32 length, __u32 *verdict)
{
	__u64 number = set->dimensions && parsed ? classify(set, packet) : XSKD_DEFAULT;
	__u32 place = set->tallies + number;
	struct xskd_rule_tally *tally = bpf_map_lookup_elem(&rule_tallies, &place);
	struct xskd_rule rule;

	forget(number, length);
	if (number > XSKD_DEFAULT)
		return XSKD_PASS;       /* never; for the verifier */
	rule = set->rules[number];
	if (set->dimensions && !parsed)
		count(XSKD_UNPARSED, length);
	if (tally) {
		tally->packets++;
		tally->bytes += length;
	}
	if (rule.answer == XSKD_REDIRECT || rule.answer == XSKD_EXPRESS) {
		if (rule.limit && !within(set, rule.limit, ctx->rx_queue_index, length)) {
			if (tally)
				tally->limited++;
			*verdict = XSKD_RULE_LIMITED;
			return XSKD_ANSWERS;
		}
		if (set->limited && !within(set, 0, ctx->rx_queue_index, length)) {
			*verdict = XSKD_PATH_LIMITED;
			return XSKD_ANSWERS;
		}
	}
	return rule.answer;
}

static __always_inline int lane_is_open(const struct xskd_settings *config, __u32 egress_port, __u32 length)
{
	return (length > XSKD_ONE_BUFFER ? config->lanes & config->lanes_sg : config->lanes) >> (egress_port & 31) & 1;
}

static __always_inline int counted(int action, __u32 what, __u32 length)
{
	count(what, length);
	return action;
}

static __always_inline int to_user_space(struct xdp_md *ctx, const struct xskd_settings *config, __u32 length)
{
	/* Only the two lowest bits are an action; the kernel refuses anything else in the flags. */
	int fallback = config->fallback == XDP_DROP ? XDP_DROP : XDP_PASS;
	int action = (int)bpf_redirect_map(&xsks, ctx->rx_queue_index, (__u64)fallback);

	return counted(action, action == XDP_REDIRECT ? XSKD_REDIRECTED :
			       action == XDP_DROP     ? XSKD_NO_SOCKET_DROPPED : XSKD_NO_SOCKET_PASSED, length);
}

/* By whichever interface it is that express packets leave by; XDP_PASS if the way is not there. */
static __always_inline int express(__u32 port)
{
	return (int)bpf_redirect_map(&egress, port, XDP_PASS);
}

static __always_inline int unroutable(__u32 reason, __u32 length)
{
	count(XSKD_VERDICTS + reason, length);
	return counted(XDP_PASS, XSKD_UNROUTABLE, length);
}

static __always_inline int deliver_routed(struct xdp_md *ctx, const struct xskd_settings *config,
					  const struct packet *packet, int parsed, __u32 answer)
{
	struct way way = { 0 };
	__u32 reason = route(ctx, config, packet, parsed, &way);

	if (reason != XSKD_ROUTED)
		return unroutable(reason, packet->length);
	/* The map first: it has an answer before the packet is changed. */
	if (answer == XSKD_EXPRESS && lane_is_open(config, way.egress, packet->length) &&
	    express(way.egress) == XDP_REDIRECT && !forward(ctx, packet, &way))
		return counted(XDP_REDIRECT, XSKD_EXPRESSED, packet->length);
	if (describe(ctx, packet, &way))
		return unroutable(XSKD_UNROUTABLE_NO_METADATA, packet->length);
	return to_user_space(ctx, config, packet->length);
}

static __always_inline int deliver(struct xdp_md *ctx, const struct xskd_settings *config, __u32 answer, __u32 length)
{
	__u32 other = !config->own;

	if (answer == XSKD_EXPRESS && config->kind == XSKD_KIND_CONNECT && lane_is_open(config, other, length) &&
	    express(other) == XDP_REDIRECT)
		return counted(XDP_REDIRECT, XSKD_EXPRESSED, length);
	return to_user_space(ctx, config, length);
}

SEC("xdp.frags")
int xskd(struct xdp_md *ctx)
{
	__u32 zero = 0, length = (__u32)bpf_xdp_get_buff_len(ctx), answer, verdict = 0;
	const struct xskd_settings *config = bpf_map_lookup_elem(&settings, &zero);
	const struct xskd_rules *set = rules_in_force();
	struct packet packet;
	int parsed = 0, routed;

	if (!config)
		return XDP_PASS;
	routed = config->kind == XSKD_KIND_ROUTE;
	if (routed || (set && set->dimensions))
		parsed = parse(ctx, &packet, length);
	answer = set ? judge(ctx, set, &packet, parsed, length, &verdict) : config->answer;
	if (answer == XSKD_ANSWERS)
		return counted(XDP_DROP, verdict, length);
	if (answer == XSKD_DROP)
		return counted(XDP_DROP, XSKD_DROPPED, length);
	if (answer == XSKD_PASS)
		return counted(XDP_PASS, XSKD_PASSED, length);
	if (routed)
		return deliver_routed(ctx, config, &packet, parsed, answer);
	return deliver(ctx, config, answer, length);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
