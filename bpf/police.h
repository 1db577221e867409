/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
 *
 * Token buckets, in time: what has passed since the last packet is saved up, a packet costs what one may take at
 * the rate allowed. A packet goes if its cost is saved up, or all that can be; it is charged in full either way,
 * so that over time the rate is met exactly, however long packets are and however little can be saved.
 *
 * Each queue has its own buckets and its share of the rate, so nothing is shared between CPUs.
 */
#ifndef XSKD_POLICE_H
#define XSKD_POLICE_H

#define XSKD_LONGEST_PAUSE (1ULL << 45) /* ns; ten hours */

static __always_inline __s64 least(__s64 a, __s64 b)
{
	return a < b ? a : b;
}

/* Whether a packet on this queue is within a limit; one that is, is charged. */
static __always_inline int within(const struct xskd_rules *rules, __u32 limit, __u32 queue, __u32 length)
{
	const struct xskd_limit *allowed = &rules->limits[limit & (XSKD_MAX_LIMITS - 1)];
	__u32 key = queue * XSKD_MAX_LIMITS + (limit & (XSKD_MAX_LIMITS - 1));
	struct xskd_bucket *bucket = bpf_map_lookup_elem(&buckets, &key);
	__s64 depth = allowed->depth, saved, packets, bytes;
	__s64 packet_cost = allowed->packet_cost, byte_cost = allowed->byte_cost * length;
	__u64 now, elapsed;
	int enough;

	if (!bucket)
		return 1;
	now = bpf_ktime_get_ns();
	elapsed = now - bucket->since_ns;
	/* Not cut to the depth: a bucket in debt can use more. A longer pause would not fit. */
	saved = (elapsed < XSKD_LONGEST_PAUSE ? elapsed : XSKD_LONGEST_PAUSE) << 16;
	packets = least(bucket->packets + saved, depth);
	bytes = least(bucket->bytes + saved, depth);
	enough = packets >= least(packet_cost, depth) && bytes >= least(byte_cost, depth);
	bucket->since_ns = now;
	bucket->packets = enough ? packets - packet_cost : packets;
	bucket->bytes = enough ? bytes - byte_cost : bytes;
	return enough;
}

#endif
