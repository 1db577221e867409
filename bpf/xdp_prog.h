/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
 *
 * What the XDP program and the process that loads it agree on. Any change here raises the version: xskd
 * refuses an object of another one, and does not go on with maps of another one.
 *
 * Everything is naturally aligned without padding, so that a map value is the struct and nothing else.
 * csrc/build.py gives what stands between the marks to Python.
 */
#ifndef XSKD_XDP_PROG_H
#define XSKD_XDP_PROG_H

#include <linux/types.h>

/* cffi: begin */
#define XSKD_PROG_ABI 2

#define XSKD_MAX_PORTS 16       /* interfaces of a path */
#define XSKD_MAX_RULES 1024
#define XSKD_DEFAULT 1024       /* the default's place, behind the rules */
#define XSKD_TALLIES 1025       /* of one set of rules: the rules' and the default's */
#define XSKD_MAX_LIMITS 256     /* 0: the path's; 1 to 255: rules' */
#define XSKD_RULE_WORDS 16      /* XSKD_MAX_RULES bits */
#define XSKD_MAX_CLASSES 16384  /* a power of two */
#define XSKD_MAX_SPANS 8192     /* of prefixes, per direction and family; a power of two */
#define XSKD_MAX_EXTENSIONS 8   /* IPv6 extension headers that are gone through */

/* What a rule says. */
enum xskd_answer {
	XSKD_REDIRECT,          /* to user space */
	XSKD_EXPRESS,           /* straight out of another interface of the path, where that is open */
	XSKD_PASS,              /* to the kernel */
	XSKD_DROP,
	XSKD_ANSWERS
};

enum xskd_kind {
	XSKD_KIND_REFLECT,
	XSKD_KIND_CONNECT,
	XSKD_KIND_ROUTE
};

/* What became of a packet: each is in exactly one. Indices of the per-CPU map `verdicts`. */
enum xskd_verdict {
	XSKD_REDIRECTED,        /* to the XSK of the queue the packet arrived on */
	XSKD_EXPRESSED,         /* straight to another interface */
	XSKD_PASSED,            /* a rule or the default says so */
	XSKD_DROPPED,           /* a rule or the default says so */
	XSKD_RULE_LIMITED,      /* dropped: over the limit of its rule */
	XSKD_PATH_LIMITED,      /* dropped: over the limit of its path */
	XSKD_UNROUTABLE,        /* route: given to the kernel, which knows what to do with it; see below */
	XSKD_NO_SOCKET_PASSED,  /* that queue has no XSK: given to the kernel's stack */
	XSKD_NO_SOCKET_DROPPED, /* that queue has no XSK, and the path says drop */
	XSKD_VERDICTS
};

/* Why `route` left a packet to the kernel: at XSKD_VERDICTS + reason in the same map. From BLACKHOLE on in the
 * order of the kernel's BPF_FIB_LKUP_RET_*. */
enum xskd_unroutable {
	XSKD_UNROUTABLE_NOT_IP,                 /* or VLAN-tagged */
	XSKD_UNROUTABLE_OTHER_HOST,             /* the destination MAC is somebody else's */
	XSKD_UNROUTABLE_MULTICAST,
	XSKD_UNROUTABLE_BROADCAST,
	XSKD_UNROUTABLE_MALFORMED,              /* header, length or checksum */
	XSKD_UNROUTABLE_OPTIONS,                /* IPv4 options, IPv6 hop-by-hop options */
	XSKD_UNROUTABLE_TTL_EXPIRED,
	XSKD_UNROUTABLE_NEVER_FORWARDED,        /* addresses that no router may forward */
	XSKD_UNROUTABLE_BLACKHOLE,
	XSKD_UNROUTABLE_UNREACHABLE,
	XSKD_UNROUTABLE_PROHIBITED,
	XSKD_UNROUTABLE_LOCAL,                  /* NOT_FWDED: an address of this host, or no route */
	XSKD_UNROUTABLE_FORWARDING_OFF,         /* by sysctl */
	XSKD_UNROUTABLE_ENCAPSULATED,           /* the route wants a tunnel header */
	XSKD_UNROUTABLE_NO_NEIGHBOUR,           /* the kernel will ask for it */
	XSKD_UNROUTABLE_FRAGMENTATION_NEEDED,   /* longer than the route's MTU */
	XSKD_UNROUTABLE_NO_SOURCE,
	XSKD_UNROUTABLE_OUTSIDE,                /* the egress is not of this path */
	XSKD_UNROUTABLE_NO_METADATA,            /* the driver has no room for metadata */
	XSKD_UNROUTABLE_LOOKUP_FAILED,
	XSKD_UNROUTABLES
};

/* Behind those in the same map: packets that rules were to be asked about, but that cannot be parsed. They
 * took the default, and are in one of the verdicts too. */
#define XSKD_UNPARSED 29        /* XSKD_VERDICTS + XSKD_UNROUTABLES */
#define XSKD_COUNTS 30

struct xskd_tally {
	__u64 packets, bytes;
};

/* Of a rule: what matched it, and how much of that was over its own limit. */
struct xskd_rule_tally {
	__u64 packets, bytes, limited;
};

/* Which inner map counts into which half of `rule_tallies`; the one in force is in the slot of `rules`. */
struct xskd_set {
	__u32 map;              /* its id; 0: none yet */
	__u32 count;            /* rules */
};

/* The one entry of map `settings`. Changed while packets go, so nothing in it needs two words at once. */
struct xskd_settings {
	__u32 abi;              /* XSKD_PROG_ABI: of which version all these maps are */
	__u32 fallback;         /* XDP_PASS or XDP_DROP: for a queue without a socket */
	__u32 kind;             /* enum xskd_kind */
	__u32 answer;           /* enum xskd_answer, where no rules are in force */
	__u32 lanes;            /* bit i: express packets may leave by interface i of the path */
	__u32 lanes_sg;         /* bit i: those of several buffers too */
	__u32 own;              /* index of this interface among the path's */
	__u32 ports;            /* interfaces of the path */
	__u32 ifindex[XSKD_MAX_PORTS];
	__u8 mac[6];            /* this interface's own */
	__u8 unused[2];
	struct xskd_set sets[2];  /* for xskd only */
};

/* What rules can ask about. */
enum xskd_dimension {
	XSKD_DIMENSION_VLAN,
	XSKD_DIMENSION_ETHER_TYPE,
	XSKD_DIMENSION_SOURCE,
	XSKD_DIMENSION_DESTINATION,
	XSKD_DIMENSION_PROTOCOL,
	XSKD_DIMENSION_SOURCE_PORT,
	XSKD_DIMENSION_DESTINATION_PORT,
	XSKD_DIMENSION_TCP_FLAGS,
	XSKD_DIMENSION_ICMP_TYPE,
	XSKD_DIMENSION_FRAGMENT,
	XSKD_DIMENSIONS
};

/* The rules that one value of one dimension allows: rule r is bit r % 64 of words[r / 64]. */
struct xskd_class {
	__u64 summary;          /* bit w: words[w] is not 0 */
	__u64 words[XSKD_RULE_WORDS];
};

/* In 2^-16 ns, for one queue's share. A packet costs packet_cost, and byte_cost for each byte; 0: not limited
 * that way. */
struct xskd_limit {
	__u64 packet_cost, byte_cost;
	__u64 depth;            /* the most that can be saved up */
};

struct xskd_rule {
	__u8 answer;            /* enum xskd_answer */
	__u8 limit;             /* index among the limits; 0: none */
	__u8 unused[2];
};

/* All rules of an interface: the one entry of the inner map (ARRAY) in the one slot of map `rules`
 * (ARRAY_OF_MAPS), so that they are swapped by one pointer. An empty slot: no rules, settings.answer.
 *
 * Prefixes are spans: an address is in the last span whose start is not above it. Starts ascend, the first is
 * 0, and entries without use repeat: start all ones, class of the last. Addresses in host byte order, those of
 * IPv6 in two words, the high one first. [0] is of sources, [1] of destinations. */
struct xskd_rules {
	__u32 tallies;          /* where its counters begin in `rule_tallies`: set by whoever installs it */
	__u32 count;            /* rules */
	__u32 dimensions;       /* bit d: some rule asks about dimension d; the others are not looked up */
	__u32 limited;          /* 1: limits[0], the path's, is in force */
	__u32 first_step[4];    /* of the searches in span4[0], span4[1], span6[0], span6[1]: half of the power
				 * of two that is not less than the number of spans; 0: only one span */
	struct xskd_limit limits[XSKD_MAX_LIMITS];
	struct xskd_class classes[XSKD_MAX_CLASSES];
	__u64 span6[2][XSKD_MAX_SPANS][2];
	__u32 span4[2][XSKD_MAX_SPANS];
	struct xskd_rule rules[XSKD_TALLIES];
	__u32 unused;
	__u16 span6_class[2][XSKD_MAX_SPANS], span4_class[2][XSKD_MAX_SPANS];
	__u16 none[16];         /* by dimension: the class of a packet that has no such field */
	__u16 vlan[4096], ether_type[65536], protocol[256];
	__u16 port[2][65536];
	__u16 tcp_flags[256], icmp_type[256];
	__u16 fragment[4];      /* 0: whole, 1: the first, 2: a later one */
};

/* A limit on one queue: map `buckets`, at queue * XSKD_MAX_LIMITS + limit. A queue is served by one CPU at a
 * time, so there is no lock. Time saved up in 2^-16 ns; less than nothing after a packet that cost more than
 * there can be. */
struct xskd_bucket {
	__u64 since_ns;
	__s64 packets, bytes;
};

/* In front of a routed packet. */
#define XSKD_META 0x78736b64    /* "xskd" */
struct xskd_route_meta {
	__u32 check;            /* XSKD_META ^ the other words here ^ length of the packet ^ the last 32 bits of
				 * its destination address as they lie there: it is whole, and of this packet */
	__u16 egress;           /* index among the path's interfaces */
	__u16 family;           /* 4 or 6 */
	__u8 destination[6], source[6];  /* Ethernet addresses to write */
};
/* cffi: end */

#endif
