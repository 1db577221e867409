/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
 *
 * What rules and routes ask about, found in a packet once.
 *
 * A packet is unparsed if it is truncated or lies: an Ethernet header or a VLAN tag that is not all there; an
 * IP header of another version than its EtherType, or not all there; a total or payload length that is less
 * than the headers or more than the frame; more than XSKD_MAX_EXTENSIONS IPv6 extension headers, or one that
 * reaches behind the packet; a TCP header of less than 20 bytes left, SCTP and DCCP of less than 12, UDP,
 * UDP-Lite, ICMP and ICMPv6 of less than 8. An IPv6 fragment header with neither offset nor more to come is
 * of a whole packet.
 *
 * Whatever lies at a variable place is copied out by a helper, wherever in the packet's buffers it is.
 */
#ifndef XSKD_PARSE_H
#define XSKD_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define XSKD_ETHER_TYPE_QINQ 0x88a8
#define XSKD_VID 0x0fff
#define XSKD_IPV4_MORE 0x2000           /* fragments behind this one */
#define XSKD_IPV4_OFFSET 0x1fff
#define XSKD_IPV6_MORE 0x0001
#define XSKD_IPV6_OFFSET 0xfff8

enum { XSKD_WHOLE, XSKD_FIRST, XSKD_LATER };    /* index of xskd_rules.fragment */

/* Numbers in host byte order; what is behind `family` only if that is not 0. */
struct packet {
	__u32 length;           /* of all buffers */
	__u32 l3, l4, end;      /* where the IP header begins, the one behind it, and where IP ends */
	__u16 ether_type, vid;
	__u16 port[2];
	__u8 tagged, family;    /* family: 4, 6 or 0 */
	__u8 protocol, fragment;
	__u8 has_ports, has_flags, has_icmp;
	__u8 tcp_flags, icmp_type;
	__u8 hop_by_hop;
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	};
};

static __always_inline int parse_ethernet(struct xdp_md *ctx, struct packet *packet)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__be16 *type = data + 2 * ETH_ALEN;

	if (data + ETH_HLEN > end)
		return -1;
	packet->l3 = ETH_HLEN;
#pragma unroll
	for (int tags = 0; tags < 2; tags++) {
		if (*type != bpf_htons(ETH_P_8021Q) && *type != bpf_htons(XSKD_ETHER_TYPE_QINQ))
			break;
		if ((void *)(type + 3) > end)
			return -1;
		if (!tags)
			packet->vid = bpf_ntohs(type[1]) & XSKD_VID;
		packet->tagged = 1;
		packet->l3 += 4;
		type += 2;
	}
	packet->ether_type = bpf_ntohs(*type);
	return 0;
}

static __always_inline int parse_ipv4(struct xdp_md *ctx, struct packet *packet)
{
	struct iphdr *ip = &packet->v4;
	__u32 header, total, place;

	if (bpf_xdp_load_bytes(ctx, packet->l3, ip, sizeof(*ip)))
		return -1;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || total < header || packet->l3 + total > packet->length)
		return -1;
	place = bpf_ntohs(ip->frag_off);
	packet->fragment = place & XSKD_IPV4_OFFSET ? XSKD_LATER : place & XSKD_IPV4_MORE ? XSKD_FIRST : XSKD_WHOLE;
	packet->protocol = ip->protocol;
	packet->l4 = packet->l3 + header;
	packet->end = packet->l3 + total;
	packet->family = 4;
	return 0;
}

static __always_inline int is_extension(__u8 header)
{
	switch (header) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_AH:
	case IPPROTO_DSTOPTS:
	case IPPROTO_MH:
	case 139:       /* HIP */
	case 140:       /* shim6 */
		return 1;
	default:
		return 0;
	}
}

/* Goes behind the extension headers; of a later fragment there are none behind the fragment header.
 *
 * Linux 6.1 knows a loop by its jump back: the compiler must not lay it out so that its end falls into its
 * beginning, which tests/unit/test_xdp_prog.py looks at. */
static __always_inline int skip_extensions(struct xdp_md *ctx, struct packet *packet)
{
	struct { __u8 next, length; __be16 place; __be32 more; } header;

	for (int i = 0; i < XSKD_MAX_EXTENSIONS; i++) {
		__u8 kind = packet->protocol;

		if (!is_extension(kind))
			return 0;
		if (packet->l4 + sizeof(header) > packet->end ||
		    bpf_xdp_load_bytes(ctx, packet->l4, &header, sizeof(header)))
			return -1;
		packet->protocol = header.next;
		packet->l4 += kind == IPPROTO_FRAGMENT ? 8 :
			      kind == IPPROTO_AH       ? (header.length + 2) * 4 : (header.length + 1) * 8;
		if (packet->l4 > packet->end)
			return -1;
		if (kind == IPPROTO_FRAGMENT) {
			if (header.place & bpf_htons(XSKD_IPV6_OFFSET)) {
				packet->fragment = XSKD_LATER;
				return 0;
			}
			if (header.place & bpf_htons(XSKD_IPV6_MORE))
				packet->fragment = XSKD_FIRST;
		}
	}
	return is_extension(packet->protocol) ? -1 : 0;
}

static __always_inline int parse_ipv6(struct xdp_md *ctx, struct packet *packet)
{
	struct ipv6hdr *ip = &packet->v6;

	if (bpf_xdp_load_bytes(ctx, packet->l3, ip, sizeof(*ip)))
		return -1;
	packet->l4 = packet->l3 + sizeof(*ip);
	packet->end = packet->l4 + bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || packet->end > packet->length)
		return -1;
	packet->protocol = ip->nexthdr;
	packet->hop_by_hop = ip->nexthdr == IPPROTO_HOPOPTS;
	packet->family = 6;
	return skip_extensions(ctx, packet);
}

/* Ports, flags and types: none in a later fragment, nor in a protocol that has none. */
static __always_inline int parse_l4(struct xdp_md *ctx, struct packet *packet)
{
	__u8 header[14] = { 0 };
	__u32 needed = 8, wanted = 4;

	switch (packet->protocol) {
	case IPPROTO_TCP:
		needed = 20;
		wanted = sizeof(header);
		break;
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
		needed = 12;
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		break;
	default:
		return 0;
	}
	if (packet->fragment == XSKD_LATER)
		return 0;
	if (packet->l4 + needed > packet->end || bpf_xdp_load_bytes(ctx, packet->l4, header, wanted))
		return -1;
	if (packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6) {
		packet->has_icmp = 1;
		packet->icmp_type = header[0];
		return 0;
	}
	packet->has_ports = 1;
	packet->port[0] = header[0] << 8 | header[1];
	packet->port[1] = header[2] << 8 | header[3];
	if (packet->protocol == IPPROTO_TCP) {
		packet->has_flags = 1;
		packet->tcp_flags = header[13];
	}
	return 0;
}

static __always_inline int parse_all(struct xdp_md *ctx, struct packet *packet)
{
	if (parse_ethernet(ctx, packet))
		return -1;
	if (packet->ether_type == ETH_P_IP)
		return parse_ipv4(ctx, packet) ? -1 : parse_l4(ctx, packet);
	if (packet->ether_type == ETH_P_IPV6)
		return parse_ipv6(ctx, packet) ? -1 : parse_l4(ctx, packet);
	return 0;
}

/* Makes the verifier forget what it knows of a value, by means of one that it knows nothing of. */
#define forget(value, unknown) \
	do { \
		__u64 forgotten = (value); \
		asm volatile("%0 ^= %1\n%0 ^= %1" : "+r"(forgotten) : "r"(unknown)); \
		(value) = forgotten; \
	} while (0)

/* Whether a packet can be parsed, and then what there is in it.
 *
 * There are some hundred ways through a parser, and the verifier would walk all that follows once for each of
 * them; for it they all come to the same here. */
static __always_inline int parse(struct xdp_md *ctx, struct packet *packet, __u32 length)
{
	__u64 unknown = length;
	int parsed;

	__builtin_memset(packet, 0, sizeof(*packet));
	packet->length = length;
	parsed = !parse_all(ctx, packet);
	forget(parsed, unknown);
	forget(packet->ether_type, unknown);
	forget(packet->vid, unknown);
	forget(packet->port[0], unknown);
	forget(packet->port[1], unknown);
	forget(packet->tagged, unknown);
	forget(packet->family, unknown);
	forget(packet->protocol, unknown);
	forget(packet->fragment, unknown);
	forget(packet->has_ports, unknown);
	forget(packet->has_flags, unknown);
	forget(packet->has_icmp, unknown);
	forget(packet->tcp_flags, unknown);
	forget(packet->icmp_type, unknown);
	forget(packet->hop_by_hop, unknown);
	return parsed;
}

#endif
