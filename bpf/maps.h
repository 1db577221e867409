/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
 *
 * The program's maps. Whoever has them can go on with the program of another process (xskd/xdp.py).
 */
#ifndef XSKD_MAPS_H
#define XSKD_MAPS_H

#include "xdp_prog.h"

/* Resized before loading to the number of queues the interface has. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

/* The interfaces of the path that express packets leave by, in the path's order. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, XSKD_MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} egress SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xskd_settings);
} settings SEC(".maps");

/* One slot, and only while rules are in force anything in it. Replacing what is in it returns when no packet
 * sees the old one any more (synchronize_rcu), so that its counters are final. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(max_entries, 1);
		__uint(key_size, sizeof(__u32));
		__uint(value_size, sizeof(struct xskd_rules));
	});
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * XSKD_TALLIES);
	__type(key, __u32);
	__type(value, struct xskd_rule_tally);
} rule_tallies SEC(".maps");

/* Resized before loading: XSKD_MAX_LIMITS for each queue. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, XSKD_MAX_LIMITS);
	__type(key, __u32);
	__type(value, struct xskd_bucket);
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, XSKD_COUNTS);
	__type(key, __u32);
	__type(value, struct xskd_tally);
} verdicts SEC(".maps");

static __always_inline void count(__u32 what, __u32 length)
{
	struct xskd_tally *tally = bpf_map_lookup_elem(&verdicts, &what);

	if (tally) {
		tally->packets++;
		tally->bytes += length;
	}
}

#endif
