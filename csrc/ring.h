/* SPDX-License-Identifier: Apache-2.0
 *
 * The rings shared with the kernel: FILL, RX, TX and completion.
 *
 * A ring is a power-of-two array of entries with two free-running u32 indices. One side writes
 * `producer`, the other writes `consumer`; each index has exactly one writer. The slot of index i is
 * i & (size - 1); how full a ring is comes only from the difference of the indices in u32 arithmetic,
 * so nothing happens when they wrap at 2^32.
 *
 * Invariants
 *   - `own` is our index (producer of FILL and TX, consumer of RX and completion). It is seeded from the
 *     ring itself, so that a ring somebody else has used before can be continued.
 *   - We read the other side's index with acquire and publish ours with release: what was written before
 *     the index moved is visible to whoever sees the index move. These are real barriers, also on arm64.
 *   - The other side is not trusted: a difference greater than the size is impossible unless the ring is
 *     corrupt, and is answered with "nothing to do here" rather than with an access out of bounds. Whoever
 *     looks at levels (observe.c, frames.c) ends the port for it.
 *   - There are no system calls here, and nothing here knows what an entry means.
 *
 * Words: a producer reserves slots and submits them; a consumer peeks at entries and releases them
 * (the vocabulary of libxdp's xsk.h).
 */
#ifndef XSKD_RING_H
#define XSKD_RING_H

#include <linux/if_xdp.h>
#include <stdbool.h>
#include <stdint.h>

#include "forward.h"

static inline uint32_t ring_mask(const struct xskd_ring *ring)
{
	return ring->size - 1;
}

/* How many entries lie between the two indices; more than `size` means that the ring is corrupt. */
static inline uint32_t ring_used_by_producer(const struct xskd_ring *ring)
{
	return ring->own - __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
}

static inline uint32_t ring_used_by_consumer(const struct xskd_ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) - ring->own;
}

/* Producer: slots beside the `used` ones, at most `wanted`. */
static inline uint32_t ring_room(const struct xskd_ring *ring, uint32_t used, uint32_t wanted)
{
	uint32_t room = used <= ring->size ? ring->size - used : 0;

	return room < wanted ? room : wanted;
}

/* Producer: slots that may be written now, at most `wanted`. */
static inline uint32_t ring_reserve(const struct xskd_ring *ring, uint32_t wanted)
{
	return ring_room(ring, ring_used_by_producer(ring), wanted);
}

/* Producer: the first n reserved slots are written; let the other side see them. */
static inline void ring_submit(struct xskd_ring *ring, uint32_t n)
{
	ring->own += n;
	__atomic_store_n(ring->producer, ring->own, __ATOMIC_RELEASE);
}

/* Consumer: entries out of `used` that may be read, at most `wanted`. */
static inline uint32_t ring_given(const struct xskd_ring *ring, uint32_t used, uint32_t wanted)
{
	if (used > ring->size)
		return 0;
	return used < wanted ? used : wanted;
}

/* Consumer: entries that may be read now, at most `wanted`. */
static inline uint32_t ring_peek(const struct xskd_ring *ring, uint32_t wanted)
{
	return ring_given(ring, ring_used_by_consumer(ring), wanted);
}

/* Consumer: the first n entries have been read; let the other side write there again. */
static inline void ring_release(struct xskd_ring *ring, uint32_t n)
{
	ring->own += n;
	__atomic_store_n(ring->consumer, ring->own, __ATOMIC_RELEASE);
}

/* Entries from our index up to where the array ends, at most n: work on a ring is done in one or two
 * straight runs, so that the inner loops need neither a mask nor a slot calculation. */
static inline uint32_t ring_run(const struct xskd_ring *ring, uint32_t offset, uint32_t n)
{
	uint32_t until_end = ring->size - ((ring->own + offset) & ring_mask(ring));

	return n < until_end ? n : until_end;
}

static inline struct xdp_desc *ring_desc(const struct xskd_ring *ring, uint32_t offset)
{
	return (struct xdp_desc *)ring->entries + ((ring->own + offset) & ring_mask(ring));
}

static inline uint64_t *ring_addr(const struct xskd_ring *ring, uint32_t offset)
{
	return (uint64_t *)ring->entries + ((ring->own + offset) & ring_mask(ring));
}

/* Unaligned chunks: the kernel tells of a packet by its frame's address, as FILL had it, and in the upper 16
 * bits by how far in it begins. The first n entries get plain addresses instead. They are ours to write to until
 * they are released, and a second time changes nothing. */
static inline void ring_add_offsets(const struct xskd_ring *ring, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct xdp_desc *desc = ring_desc(ring, i);

		desc->addr = (desc->addr & XSK_UNALIGNED_BUF_ADDR_MASK) +
			     (desc->addr >> XSK_UNALIGNED_BUF_OFFSET_SHIFT);
	}
}

/* Does the kernel ask for a system call before it goes on? False where the ring has no flags word
 * (kernels before 5.4): they never sleep on their own. */
static inline bool ring_needs_wakeup(const struct xskd_ring *ring)
{
	return ring->flags && (__atomic_load_n(ring->flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP);
}

#endif
