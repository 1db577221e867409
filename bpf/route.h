/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
 *
 * Routing by the kernel's own tables: what a router may forward and the kernel knows the way of goes out of
 * another interface of the path, everything else goes to the kernel, whole and unchanged, with the reason
 * counted. The kernel answers with ICMP, asks for neighbours, fragments, delivers: none of that is done here.
 */
#ifndef XSKD_ROUTE_H
#define XSKD_ROUTE_H

#include "parse.h"

#define XSKD_AF_INET 2
#define XSKD_AF_INET6 10

/* Where a packet goes: the answer to `route`, if that is XSKD_ROUTED and not a reason. */
#define XSKD_ROUTED XSKD_UNROUTABLES
struct way {
	__u32 egress;           /* index among the path's interfaces */
	__u8 destination[6], source[6];
};

/* 16 bits of a sum in ones' complement. */
static __always_inline __u16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline int header_is_whole(const struct iphdr *ip)
{
	const __u32 *word = (const __u32 *)ip;

	return folded((__u64)word[0] + word[1] + word[2] + word[3] + word[4]) == 0xffff;
}

/* Zero, loopback, multicast and class E with the limited broadcast; and link-local (RFC 3927). */
static __always_inline int never_forwarded4(__be32 address)
{
	__u32 first = bpf_ntohl(address) >> 24;

	return first == 0 || first == 127 || first >= 224 || bpf_ntohl(address) >> 16 == 0xa9fe;
}

/* Unspecified, loopback and IPv4-compatible (::/96), link-local, multicast. */
static __always_inline int never_forwarded6(const struct in6_addr *address)
{
	const __be32 *word = address->in6_u.u6_addr32;

	return (word[0] | word[1] | word[2]) == 0 || (word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
	       (word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* What can be told of an Ethernet destination; XSKD_ROUTED: it is ours. */
static __always_inline __u32 unroutable_mac(struct xdp_md *ctx, const struct xskd_settings *settings)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const __u16 *mac = data, *ours = (const __u16 *)settings->mac;

	if (data + ETH_HLEN > end)
		return XSKD_UNROUTABLE_MALFORMED;
	if (mac[0] == ours[0] && mac[1] == ours[1] && mac[2] == ours[2])
		return XSKD_ROUTED;
	if ((mac[0] & mac[1] & mac[2]) == 0xffff)
		return XSKD_UNROUTABLE_BROADCAST;
	return mac[0] & bpf_htons(0x0100) ? XSKD_UNROUTABLE_MULTICAST : XSKD_UNROUTABLE_OTHER_HOST;
}

/* What can be told of an IPv4 header, and the question to the kernel. */
static __always_inline __u32 ask4(const struct packet *packet, struct bpf_fib_lookup *question)
{
	const struct iphdr *ip = &packet->v4;

	if (ip->ihl != 5)
		return XSKD_UNROUTABLE_OPTIONS;
	if (!header_is_whole(ip))
		return XSKD_UNROUTABLE_MALFORMED;
	if (never_forwarded4(ip->saddr) || never_forwarded4(ip->daddr))
		return XSKD_UNROUTABLE_NEVER_FORWARDED;
	if (ip->ttl <= 1)
		return XSKD_UNROUTABLE_TTL_EXPIRED;
	question->family = XSKD_AF_INET;
	question->tot_len = bpf_ntohs(ip->tot_len);
	question->tos = ip->tos;
	question->ipv4_src = ip->saddr;
	question->ipv4_dst = ip->daddr;
	return XSKD_ROUTED;
}

static __always_inline __u32 ask6(const struct packet *packet, struct bpf_fib_lookup *question)
{
	const struct ipv6hdr *ip = &packet->v6;
	__u32 length = bpf_ntohs(ip->payload_len) + sizeof(*ip);

	if (packet->hop_by_hop)
		return XSKD_UNROUTABLE_OPTIONS;
	if (length > 0xffff)
		return XSKD_UNROUTABLE_MALFORMED;
	if (never_forwarded6(&ip->saddr) || never_forwarded6(&ip->daddr))
		return XSKD_UNROUTABLE_NEVER_FORWARDED;
	if (ip->hop_limit <= 1)
		return XSKD_UNROUTABLE_TTL_EXPIRED;
	question->family = XSKD_AF_INET6;
	question->tot_len = length;
	question->flowinfo = *(const __be32 *)ip & bpf_htonl(0x0fffffff);
	__builtin_memcpy(question->ipv6_src, &ip->saddr, sizeof(question->ipv6_src));
	__builtin_memcpy(question->ipv6_dst, &ip->daddr, sizeof(question->ipv6_dst));
	return XSKD_ROUTED;
}

/* Where the path has the interface of this index; XSKD_MAX_PORTS: nowhere. */
static __always_inline __u32 port_of(const struct xskd_settings *settings, __u32 ifindex)
{
	__u32 port = 0;

	for (; port < XSKD_MAX_PORTS; port++)
		if (settings->ifindex[port] == ifindex)
			break;
	return port;
}

/* The way of a packet, or the reason why the kernel must have it. `parsed` is what `parse` said. */
static __always_inline __u32 route(struct xdp_md *ctx, const struct xskd_settings *settings,
				   const struct packet *packet, int parsed, struct way *way)
{
	struct bpf_fib_lookup question = { .ifindex = ctx->ingress_ifindex, .l4_protocol = packet->protocol };
	__u32 reason;
	long answer;

	if (packet->tagged || (packet->ether_type != ETH_P_IP && packet->ether_type != ETH_P_IPV6))
		return XSKD_UNROUTABLE_NOT_IP;
	reason = unroutable_mac(ctx, settings);
	if (reason != XSKD_ROUTED)
		return reason;
	if (!parsed)
		return XSKD_UNROUTABLE_MALFORMED;
	reason = packet->family == 4 ? ask4(packet, &question) : ask6(packet, &question);
	if (reason != XSKD_ROUTED)
		return reason;
	if (packet->has_ports) {
		question.sport = bpf_htons(packet->port[0]);
		question.dport = bpf_htons(packet->port[1]);
	}
	answer = bpf_fib_lookup(ctx, &question, sizeof(question), 0);
	if (answer < 0 || answer > XSKD_UNROUTABLE_NO_SOURCE - XSKD_UNROUTABLE_BLACKHOLE + 1)
		return XSKD_UNROUTABLE_LOOKUP_FAILED;
	if (answer != BPF_FIB_LKUP_RET_SUCCESS)
		return XSKD_UNROUTABLE_BLACKHOLE + answer - BPF_FIB_LKUP_RET_BLACKHOLE;
	way->egress = port_of(settings, question.ifindex);
	__builtin_memcpy(way->destination, question.dmac, sizeof(way->destination));
	__builtin_memcpy(way->source, question.smac, sizeof(way->source));
	return way->egress < XSKD_MAX_PORTS ? XSKD_ROUTED : XSKD_UNROUTABLE_OUTSIDE;
}

/* Does to a packet what a router does, RFC 1624 to its checksum; 0, or -1 if it is not all there. */
static __always_inline int forward(struct xdp_md *ctx, const struct packet *packet, const struct way *way)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;

	if (packet->family == 6) {
		struct ipv6hdr *ip = data + sizeof(*ethernet);

		if ((void *)(ip + 1) > end)
			return -1;
		ip->hop_limit--;
	} else {
		struct iphdr *ip = data + sizeof(*ethernet);
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return -1;
		sum = ip->check + (__u32)bpf_htons(0x0100);
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	}
	__builtin_memcpy(ethernet->h_dest, way->destination, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, way->source, ETH_ALEN);
	return 0;
}

/* Tells the worker the way; 0, or -1 if the driver has no room for it. */
static __always_inline int describe(struct xdp_md *ctx, const struct packet *packet, const struct way *way)
{
	struct xskd_route_meta told = { .egress = way->egress, .family = packet->family };
	const __u32 *word = (const __u32 *)&told;
	struct xskd_route_meta *meta;
	void *data;

	__builtin_memcpy(told.destination, way->destination, ETH_ALEN);
	__builtin_memcpy(told.source, way->source, ETH_ALEN);
	told.check = XSKD_META ^ word[1] ^ word[2] ^ word[3] ^ word[4] ^ packet->length ^
		     (packet->family == 4 ? packet->v4.daddr : packet->v6.daddr.in6_u.u6_addr32[3]);
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(told)))
		return -1;
	data = (void *)(long)ctx->data;
	meta = (void *)(long)ctx->data_meta;
	/* Neither more nor less: somebody else's metadata may have been there. Two comparisons, which the
	 * compiler must not make one of: the kernel allows no test of packet addresses for equality. */
	if ((void *)(meta + 1) > data)
		return -1;
	barrier_var(data);
	if ((void *)(meta + 1) < data)
		return -1;
	*meta = told;
	return 0;
}

#endif
