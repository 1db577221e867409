/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
 *
 * Which rule a packet meets first, at a cost that does not know how many rules there are.
 *
 * Each field that some rule asks about gives one class: the set of rules that this value of this field allows.
 * The rules that match are what is in all those sets, and the first is the lowest bit. docs/decisions/0013
 * says why this and not the kernel's own tries and hashes.
 *
 * Comparisons are arithmetic where they would be branches in a loop: the kernel's verifier walks every path. No
 * `x & -y` among them: of a mask that is 0 or all ones Linux 6.18 makes two paths.
 */
#ifndef XSKD_CLASSIFY_H
#define XSKD_CLASSIFY_H

#include "parse.h"

/* 1 if a < b. */
static __always_inline __u64 below(__u64 a, __u64 b)
{
	return ((~a & b) | (~(a ^ b) & (a - b))) >> 63;
}

/* Where the lowest set bit is; there must be one. BPF has no instruction for it: ones below it are counted. */
static __always_inline __u32 lowest(__u64 bits)
{
	__u64 ones = ~bits & (bits - 1);

	ones -= ones >> 1 & 0x5555555555555555;
	ones = (ones & 0x3333333333333333) + (ones >> 2 & 0x3333333333333333);
	ones = (ones + (ones >> 4)) & 0x0f0f0f0f0f0f0f0f;
	return ones * 0x0101010101010101 >> 56 & 63;
}

/* The last span whose start is not above the address. */
static __always_inline __u64 span4(const struct xskd_rules *rules, int direction, __u32 address)
{
	__u64 found = 0;

	for (__u64 step = rules->first_step[direction] & (XSKD_MAX_SPANS - 1); step; step >>= 1) {
		__u32 start = rules->span4[direction][(found + step) & (XSKD_MAX_SPANS - 1)];

		found = (found + (below(address, start) ^ 1) * step) & (XSKD_MAX_SPANS - 1);
	}
	return found;
}

static __always_inline __u64 span6(const struct xskd_rules *rules, int direction, __u64 high, __u64 low)
{
	__u64 found = 0;

	for (__u64 step = rules->first_step[2 + direction] & (XSKD_MAX_SPANS - 1); step; step >>= 1) {
		const __u64 *start = rules->span6[direction][(found + step) & (XSKD_MAX_SPANS - 1)];
		__u64 less = below(high, start[0]), more = below(start[0], high);
		__u64 above = less | ((more ^ 1) & below(low, start[1]));

		found = (found + (above ^ 1) * step) & (XSKD_MAX_SPANS - 1);
	}
	return found;
}

static __always_inline __u32 address_class(const struct xskd_rules *rules, const struct packet *packet,
					   int direction, enum xskd_dimension dimension)
{
	if (packet->family == 4) {
		__u32 address = bpf_ntohl(direction ? packet->v4.daddr : packet->v4.saddr);

		return rules->span4_class[direction][span4(rules, direction, address)];
	}
	if (packet->family == 6) {
		const __be32 *word = (direction ? &packet->v6.daddr : &packet->v6.saddr)->in6_u.u6_addr32;
		__u64 high = (__u64)bpf_ntohl(word[0]) << 32 | bpf_ntohl(word[1]);
		__u64 low = (__u64)bpf_ntohl(word[2]) << 32 | bpf_ntohl(word[3]);

		return rules->span6_class[direction][span6(rules, direction, high, low)];
	}
	return rules->none[dimension];
}

/* Whether some rule asks about a dimension. Read anew each time: for the verifier, one answer that it remembered
 * for each dimension would make a thousand ways through what follows. */
static __always_inline int asked(const struct xskd_rules *rules, enum xskd_dimension dimension)
{
	return *(const volatile __u32 *)&rules->dimensions & 1U << dimension;
}

/* Class of a packet by one dimension; of one that nobody asks about some class that is not looked at. */
static __always_inline __u32 class_of(const struct xskd_rules *rules, const struct packet *packet,
				      enum xskd_dimension dimension)
{
	__u32 none = rules->none[dimension];

	if (!asked(rules, dimension))
		return none;
	switch (dimension) {
	case XSKD_DIMENSION_VLAN:
		return packet->tagged ? rules->vlan[packet->vid & XSKD_VID] : none;
	case XSKD_DIMENSION_ETHER_TYPE:
		return rules->ether_type[packet->ether_type];
	case XSKD_DIMENSION_SOURCE:
		return address_class(rules, packet, 0, dimension);
	case XSKD_DIMENSION_DESTINATION:
		return address_class(rules, packet, 1, dimension);
	case XSKD_DIMENSION_PROTOCOL:
		return packet->family ? rules->protocol[packet->protocol] : none;
	case XSKD_DIMENSION_SOURCE_PORT:
		return packet->has_ports ? rules->port[0][packet->port[0]] : none;
	case XSKD_DIMENSION_DESTINATION_PORT:
		return packet->has_ports ? rules->port[1][packet->port[1]] : none;
	case XSKD_DIMENSION_TCP_FLAGS:
		return packet->has_flags ? rules->tcp_flags[packet->tcp_flags] : none;
	case XSKD_DIMENSION_ICMP_TYPE:
		return packet->has_icmp ? rules->icmp_type[packet->icmp_type] : none;
	case XSKD_DIMENSION_FRAGMENT:
		return packet->family ? rules->fragment[packet->fragment & 3] : none;
	default:
		return none;
	}
}

/* The rule that a parsed packet meets first, or XSKD_DEFAULT. */
static __always_inline __u32 classify(const struct xskd_rules *rules, const struct packet *packet)
{
	const struct xskd_class *class[XSKD_DIMENSIONS];
	__u64 words = (1U << XSKD_RULE_WORDS) - 1, matching = 0;
	__u32 word = 0;

#pragma unroll
	for (int d = 0; d < XSKD_DIMENSIONS; d++) {
		class[d] = &rules->classes[class_of(rules, packet, d) & (XSKD_MAX_CLASSES - 1)];
		if (asked(rules, d))
			words &= class[d]->summary;
	}
#pragma unroll
	for (; word < XSKD_RULE_WORDS; word++) {
		if (!(words >> word & 1))
			continue;
		matching = ~0ULL;
#pragma unroll
		for (int d = 0; d < XSKD_DIMENSIONS; d++)
			if (asked(rules, d))
				matching &= class[d]->words[word];
		if (matching)
			return word * 64 + lowest(matching);
	}
	return XSKD_DEFAULT;
}

#endif
