/* SPDX-License-Identifier: Apache-2.0
 *
 * The rings alone, over plain memory: every index near a wrap, every level, every torn index.
 */
#include "../../csrc/ring.h"

#include "check.h"

#define SIZE 8u

/* Where indices may stand: at the start, before both sign changes, just below the wrap and on it. */
static const uint32_t starts[] = {
	0, 3, 0x7ffffffcu, 0x80000000u, UINT32_MAX - 100, UINT32_MAX - 3, UINT32_MAX,
};

struct memory {
	struct xskd_ring ring;
	uint32_t producer, consumer, flags;
};

static struct memory *memory_new(uint32_t start, size_t entry)
{
	struct memory *memory = calloc(1, sizeof(*memory));

	memory->producer = memory->consumer = start;
	memory->ring = (struct xskd_ring){
		.producer = &memory->producer, .consumer = &memory->consumer, .flags = &memory->flags,
		.entries = calloc(SIZE, entry), .size = SIZE, .own = start,
	};
	return memory;
}

static void memory_free(struct memory *memory)
{
	free(memory->ring.entries);
	free(memory);
}

TEST(empty_and_full_producer)
{
	for (size_t i = 0; i < LENGTH(starts); i++) {
		struct memory *memory = memory_new(starts[i], sizeof(uint64_t));
		struct xskd_ring *ring = &memory->ring;

		EQUAL(ring_reserve(ring, 100), SIZE);
		EQUAL(ring_reserve(ring, 5), 5);
		EQUAL(ring_reserve(ring, 0), 0);
		EQUAL(ring_used_by_producer(ring), 0);
		ring_submit(ring, SIZE);
		EQUAL(memory->producer, starts[i] + SIZE);
		EQUAL(ring_used_by_producer(ring), SIZE);
		EQUAL(ring_reserve(ring, 1), 0);
		memory->consumer++;             /* exactly one slot */
		EQUAL(ring_reserve(ring, 100), 1);
		ring_submit(ring, 1);
		EQUAL(ring_reserve(ring, 100), 0);
		memory_free(memory);
	}
}

TEST(empty_and_full_consumer)
{
	for (size_t i = 0; i < LENGTH(starts); i++) {
		struct memory *memory = memory_new(starts[i], sizeof(uint64_t));
		struct xskd_ring *ring = &memory->ring;

		EQUAL(ring_peek(ring, 100), 0);
		memory->producer++;             /* exactly one entry */
		EQUAL(ring_peek(ring, 100), 1);
		ring_release(ring, 1);
		EQUAL(memory->consumer, starts[i] + 1);
		EQUAL(ring_peek(ring, 100), 0);
		memory->producer += SIZE;       /* full */
		EQUAL(ring_used_by_consumer(ring), SIZE);
		EQUAL(ring_peek(ring, 100), SIZE);
		EQUAL(ring_peek(ring, 3), 3);
		EQUAL(ring_peek(ring, 0), 0);
		ring_release(ring, SIZE);
		EQUAL(ring_peek(ring, 100), 0);
		EQUAL(memory->consumer, memory->producer);
		memory_free(memory);
	}
}

/* Every batch size through every position: what went in comes out, in order, and nothing else does. */
TEST(entries_pass_in_order_across_the_wrap)
{
	for (uint32_t batch = 1; batch <= SIZE; batch++) {
		struct memory *memory = memory_new(UINT32_MAX - 2 * SIZE, sizeof(uint64_t));
		struct xskd_ring *producer = &memory->ring, consumer = memory->ring;
		uint64_t written = 0, read = 0;

		for (int turn = 0; turn < 50; turn++) {
			uint32_t n = ring_reserve(producer, batch);

			EQUAL(n, batch);
			for (uint32_t i = 0; i < n; i++)
				*ring_addr(producer, i) = written++;
			EQUAL(ring_peek(&consumer, SIZE), 0);   /* not before it is submitted */
			ring_submit(producer, n);
			EQUAL(ring_peek(&consumer, SIZE), n);
			for (uint32_t i = 0; i < n; i++)
				EQUAL(*ring_addr(&consumer, i), read++);
			EQUAL(ring_reserve(producer, SIZE), SIZE - n);
			ring_release(&consumer, n);
		}
		EQUAL(read, 50 * batch);
		memory_free(memory);
	}
}

/* A difference of more than the size is impossible: do nothing rather than touch what is not there. */
TEST(torn_indices_are_neither_read_nor_written)
{
	static const uint32_t jumps[] = { SIZE + 1, SIZE + 2, 1000, 0x7fffffff, 0x80000000u, UINT32_MAX };

	for (size_t i = 0; i < LENGTH(starts) * LENGTH(jumps); i++) {
		struct memory *memory = memory_new(starts[i % LENGTH(starts)], sizeof(uint64_t));
		struct xskd_ring *ring = &memory->ring;
		uint32_t jump = jumps[i / LENGTH(starts)];

		memory->producer = ring->own + jump;
		EQUAL(ring_peek(ring, 100), 0);
		memory->consumer = ring->own - jump;
		EQUAL(ring_reserve(ring, 100), 0);
		memory_free(memory);
	}
}

TEST(a_ring_comes_back_after_a_torn_index)
{
	struct memory *memory = memory_new(UINT32_MAX, sizeof(uint64_t));

	memory->producer = memory->ring.own + SIZE + 1;
	EQUAL(ring_peek(&memory->ring, SIZE), 0);
	memory->producer = memory->ring.own + 2;
	EQUAL(ring_peek(&memory->ring, SIZE), 2);
	memory_free(memory);
}

/* A run ends where the array ends, wherever the index and the offset stand. */
TEST(runs_end_at_the_end_of_the_array)
{
	for (uint32_t own = UINT32_MAX - 2 * SIZE; own != 2 * SIZE; own++) {
		struct memory *memory = memory_new(own, sizeof(struct xdp_desc));
		const struct xskd_ring *ring = &memory->ring;
		struct xdp_desc *last = (struct xdp_desc *)ring->entries + SIZE - 1;

		for (uint32_t offset = 0; offset < SIZE; offset++) {
			uint32_t n = ring_run(ring, offset, SIZE - offset);

			CHECK(n >= 1 && n <= SIZE - offset);
			CHECK(ring_desc(ring, offset) + n - 1 <= last);
			CHECK(n == SIZE - offset || ring_desc(ring, offset) + n - 1 == last);
			EQUAL(ring_run(ring, offset, 1), 1);
			EQUAL(ring_run(ring, offset, 0), 0);
		}
		memory_free(memory);
	}
}

TEST(slots_of_both_entry_sizes)
{
	struct memory *addrs = memory_new(UINT32_MAX, sizeof(uint64_t));
	struct memory *descs = memory_new(UINT32_MAX, sizeof(struct xdp_desc));

	CHECK(ring_addr(&addrs->ring, 0) == (uint64_t *)addrs->ring.entries + SIZE - 1);
	CHECK(ring_addr(&addrs->ring, 1) == (uint64_t *)addrs->ring.entries);
	CHECK(ring_desc(&descs->ring, 0) == (struct xdp_desc *)descs->ring.entries + SIZE - 1);
	CHECK(ring_desc(&descs->ring, 1) == (struct xdp_desc *)descs->ring.entries);
	memory_free(addrs);
	memory_free(descs);
}

TEST(the_wakeup_flag_and_kernels_without_one)
{
	struct memory *memory = memory_new(0, sizeof(uint64_t));

	CHECK(!ring_needs_wakeup(&memory->ring));
	memory->flags = XDP_RING_NEED_WAKEUP;
	CHECK(ring_needs_wakeup(&memory->ring));
	memory->flags = ~XDP_RING_NEED_WAKEUP;
	CHECK(!ring_needs_wakeup(&memory->ring));
	memory->ring.flags = NULL;
	CHECK(!ring_needs_wakeup(&memory->ring));
	memory_free(memory);
}
