/* SPDX-License-Identifier: Apache-2.0
 *
 * The ring of a capture: everything through it once and unchanged, copies lost and counted when it is full, and
 * whatever the other end writes into it. The sanitizers see each byte that is touched.
 */
#include <errno.h>

#include "../../csrc/capture.h"
#include "../../csrc/frames.h"
#include "../../csrc/syscalls.h"
#include "routed.h"
#include "scene.h"

#define RING 512        /* bytes: four packets of 60 */
#define RECORD (sizeof(struct xskd_capture_record) + 64)

static uint8_t *new_ring(uint64_t start)
{
	uint8_t *memory = calloc(1, XSKD_CAPTURE_HEADER + RING);
	struct xskd_capture_ring *ring = (struct xskd_capture_ring *)memory;

	ring->layout_version = XSKD_CAPTURE_LAYOUT;
	ring->producer = ring->consumer = start;
	return memory;
}

/* A loop whose packets are copied, and a reader of the copies. */
struct tapped {
	struct fake *fake;
	struct xskd_capture_ring *ring;
	struct xskd_capture capture;
	struct xskd_capture_reader reader;
};

static void tap(struct tapped *tapped, enum xskd_action action, uint32_t directions, uint64_t start)
{
	memset(tapped, 0, sizeof(*tapped));
	tapped->fake = ready(&usual, action);
	tapped->ring = (struct xskd_capture_ring *)new_ring(start);
	tapped->capture.directions = directions;
	tapped->capture.snaplen = 65535;
	EQUAL(xskd_capture_open(&tapped->capture, tapped->ring, XSKD_CAPTURE_HEADER + RING), 0);
	tapped->reader.ports = FAKE_PORTS;
	tapped->reader.interface = 10;
	EQUAL(xskd_capture_reader_open(&tapped->reader, tapped->ring, XSKD_CAPTURE_HEADER + RING), 0);
	tapped->fake->forward.capture = &tapped->capture;
}

/* The same with room for large packets. */
static void enlarge(struct tapped *tapped)
{
	const uint64_t bytes = XSKD_CAPTURE_HEADER + (1 << 16);

	tapped->ring = calloc(1, bytes);
	tapped->ring->layout_version = XSKD_CAPTURE_LAYOUT;
	EQUAL(xskd_capture_open(&tapped->capture, tapped->ring, bytes), 0);
	EQUAL(xskd_capture_reader_open(&tapped->reader, tapped->ring, bytes), 0);
}

static void untap(struct tapped *tapped)
{
	done(tapped->fake);
	free(tapped->ring);
}

struct block {
	uint32_t type, length, interface, high, low, kept, original;
	uint8_t packet[];
};

static uint8_t blocks[1 << 16];

/* Read what there is, at most so many packets. Returns how many. */
static uint64_t read_blocks(struct tapped *tapped, uint64_t most)
{
	CHECK(xskd_capture_read(&tapped->reader, 1, blocks, sizeof(blocks), &most) >= 0);
	return most;
}

static const struct block *block_at(uint32_t number)
{
	const uint8_t *at = blocks;

	while (number--)
		at += ((const struct block *)at)->length;
	return (const struct block *)at;
}

static void check_block(const struct block *block, uint32_t port, uint32_t flags, uint32_t number,
			uint32_t original, uint32_t kept, bool swapped)
{
	const uint8_t *tail = block->packet + ((kept + 3) & ~3u);
	const uint32_t wanted[] = { 2 | 4 << 16, flags, 0, block->length };

	EQUAL(block->type, 6);
	EQUAL(block->length, 28 + ((kept + 3) & ~3u) + sizeof(wanted));
	EQUAL(block->interface, 10 + port);
	EQUAL(block->kept, kept);
	EQUAL(block->original, original);
	CHECK(((uint64_t)block->high << 32 | block->low) >= FAKE_WALL_NS);
	for (uint32_t i = 0; i < kept; i++)
		EQUAL(block->packet[i], fake_byte(number, swapped && i < 12 ? (i + 6) % 12 : i));
	CHECK(memcmp(tail, wanted, sizeof(wanted)) == 0);
}

static void pass_packets(struct tapped *tapped, uint32_t n, uint32_t length)
{
	EQUAL(fake_deliver(&tapped->fake->ports[0], n, length), n);
	EQUAL(xskd_forward_turn(&tapped->fake->forward) > 0, 1);
	EQUAL(tapped->fake->ports[0].sent + tapped->fake->ports[1].sent, tapped->fake->delivered);
}

/* ---- what is copied ---------------------------------------------------------------------------- */

TEST(each_packet_once_where_it_came_in_whatever_its_length_and_place_in_the_ring)
{
	struct tapped tapped;
	uint32_t number = 0;

	tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN, (uint64_t)-64);
	for (uint32_t length = 14; length < 300; length++) {
		pass_packets(&tapped, 1, length);
		EQUAL(read_blocks(&tapped, 64), 1);
		check_block(block_at(0), 0, 1, number++, length, length, false);
	}
	EQUAL(tapped.ring->ports[0].seen, number);
	EQUAL(tapped.ring->ports[0].copied, number);
	EQUAL(tapped.ring->ports[0].lost + tapped.ring->ports[0].refused + tapped.ring->ports[1].seen, 0);
	untap(&tapped);
}

TEST(in_as_it_came_and_out_as_it_went)
{
	struct tapped tapped;

	tap(&tapped, XSKD_SWAP_MACS, 1 << XSKD_IN | 1 << XSKD_OUT, 0);
	pass_packets(&tapped, 2, 60);
	EQUAL(read_blocks(&tapped, 64), 4);
	check_block(block_at(0), 0, 1, 0, 60, 60, false);
	check_block(block_at(1), 0, 1, 1, 60, 60, false);
	check_block(block_at(2), 0, 2, 0, 60, 60, true);
	check_block(block_at(3), 0, 2, 1, 60, 60, true);
	untap(&tapped);
}

TEST(out_is_where_it_leaves)
{
	struct tapped tapped;

	tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_OUT, 8);
	pass_packets(&tapped, 1, 60);
	EQUAL(read_blocks(&tapped, 64), 1);
	check_block(block_at(0), 1, 2, 0, 60, 60, false);
	untap(&tapped);
}

TEST(a_short_snaplen_keeps_the_start_and_says_the_length)
{
	struct tapped tapped;

	tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
	tapped.capture.snaplen = 17;
	pass_packets(&tapped, 3, 1000);
	EQUAL(read_blocks(&tapped, 64), 3);
	for (uint32_t i = 0; i < 3; i++)
		check_block(block_at(i), 0, 1, i, 1000, 17, false);
	untap(&tapped);
}

/* Of several descriptors: one copy, whatever the place in the rings, cut by snaplen in any of its frames. The
 * filter is asked about the first one. */
TEST(a_packet_of_several_descriptors_is_one)
{
	static const uint32_t snaplens[] = { 17, 1791, 1792, 1793, 4000, 9000, 65535 };
	static const struct bpf_insn long_ones[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0), BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 8999, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 1), BPF_STMT(BPF_RET | BPF_K, 0),
	};

	for (uint32_t n = 0; n < 14 * LENGTH(snaplens); n++) {
		const uint32_t kept = at_most(snaplens[n % LENGTH(snaplens)], 9000);
		struct tapped tapped;

		tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN | 1 << XSKD_OUT, 8);
		free(tapped.ring);
		enlarge(&tapped);
		tapped.capture.snaplen = snaplens[n % LENGTH(snaplens)];
		memcpy(tapped.capture.filter, long_ones, sizeof(long_ones));
		tapped.capture.filter_length = LENGTH(long_ones);
		for (int i = 0; i < FAKE_PORTS; i++) {
			tapped.fake->ports[i].port.multi_buffer = 1;
			tapped.fake->ports[i].port.max_length = 9018;
		}
		pass_packets(&tapped, 1 + n / 2, 60);
		pass_packets(&tapped, 1, 9000);
		EQUAL(tapped.ring->ports[0].refused, 1 + n / 2);
		EQUAL(read_blocks(&tapped, 64), 2);
		check_block(block_at(0), 0, 1, 1 + n / 2, 9000, kept, false);
		check_block(block_at(1), 1, 2, 1 + n / 2, 9000, kept, false);
		untap(&tapped);
	}
}

/* What names no frame of ours is no packet; what is too short to go on came in all the same. */
TEST(a_bad_descriptor_is_not_followed)
{
	struct tapped tapped;

	tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN | 1 << XSKD_OUT, 0);
	fake_deliver_raw(&tapped.fake->ports[0], UINT64_MAX - 8, 60, 0);
	fake_deliver_raw(&tapped.fake->ports[0], 1ull << 40, 60, 0);
	fake_deliver_odd(&tapped.fake->ports[0], FAKE_OFFSET, 4000, 0);
	fake_deliver_odd(&tapped.fake->ports[0], FAKE_OFFSET, 0, 0);
	fake_deliver_odd(&tapped.fake->ports[0], FAKE_OFFSET, 60, 1);
	fake_deliver_odd(&tapped.fake->ports[0], FAKE_OFFSET, 13, 0);
	xskd_forward_turn(&tapped.fake->forward);
	EQUAL(tapped.ring->ports[0].seen, 1);
	EQUAL(tapped.ring->ports[1].seen, 0);
	EQUAL(read_blocks(&tapped, 64), 1);
	EQUAL(block_at(0)->original, 13);
	free(tapped.ring);
	fake_free(tapped.fake);
}

/* ---- no room ----------------------------------------------------------------------------------- */

TEST(a_full_ring_loses_copies_and_never_packets)
{
	struct tapped tapped;

	tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
	pass_packets(&tapped, 64, 60);
	EQUAL(tapped.ring->ports[0].copied, RING / RECORD);
	EQUAL(tapped.ring->ports[0].lost, 64 - RING / RECORD);
	EQUAL(read_blocks(&tapped, 2), 2);
	pass_packets(&tapped, 64, 60);
	EQUAL(tapped.ring->ports[0].copied, RING / RECORD + 2);
	EQUAL(read_blocks(&tapped, 64), RING / RECORD);
	check_block(block_at(RING / RECORD - 1), 0, 1, 65, 60, 60, false);
	EQUAL(tapped.ring->ports[0].seen, 128);
	untap(&tapped);
}

TEST(a_packet_larger_than_the_ring_is_lost_as_a_copy)
{
	struct tapped tapped;

	tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
	pass_packets(&tapped, 1, 1000);
	EQUAL(tapped.ring->ports[0].lost, 1);
	EQUAL(read_blocks(&tapped, 64), 0);
	untap(&tapped);
}

TEST(a_packet_that_waits_for_room_on_tx_came_in_once)
{
	struct tapped tapped;

	tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN | 1 << XSKD_OUT, 0);
	tapped.capture.snaplen = 1;
	tapped.fake->ports[1].tx_budget = 0;
	EQUAL(fake_deliver(&tapped.fake->ports[0], 128, 60), 128);
	for (int turn = 0; turn < 3; turn++)
		xskd_forward_turn(&tapped.fake->forward);
	EQUAL(fake_deliver(&tapped.fake->ports[0], 10, 60), 10);
	for (int turn = 0; turn < 30; turn++) {
		tapped.fake->forward.now_ns += MS;
		xskd_forward_turn(&tapped.fake->forward);
	}
	EQUAL(tapped.fake->counters.ports[0].drops[XSKD_DROP_TX_FULL], 10);
	EQUAL(tapped.ring->ports[0].seen, 138);
	EQUAL(tapped.ring->ports[1].seen, 128);
	untap(&tapped);
}

/* ---- the other end is hostile ------------------------------------------------------------------ */

TEST(a_worker_survives_whatever_a_reader_writes)
{
	static const uint64_t lies[] = { 1, 7, RING, RING + 1, UINT64_MAX, 1ull << 63, (uint64_t)-RING };
	struct tapped tapped;

	for (size_t i = 0; i < LENGTH(lies); i++) {
		tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
		pass_packets(&tapped, 2, 60);
		memset(tapped.ring, 0xff, XSKD_CAPTURE_HEADER + RING);
		tapped.ring->consumer = lies[i];
		pass_packets(&tapped, 64, 61);
		untap(&tapped);
	}
}

/* Its successor goes on wherever the shared index says, which the reader may have changed. */
TEST(a_successor_goes_on_in_the_same_ring_and_believes_nothing)
{
	struct tapped tapped;

	tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
	pass_packets(&tapped, 1, 60);
	EQUAL(xskd_capture_open(&tapped.capture, tapped.ring, XSKD_CAPTURE_HEADER + RING), 0);
	pass_packets(&tapped, 1, 60);
	EQUAL(read_blocks(&tapped, 64), 2);
	check_block(block_at(1), 0, 1, 1, 60, 60, false);
	tapped.ring->producer = UINT64_MAX;
	EQUAL(xskd_capture_open(&tapped.capture, tapped.ring, XSKD_CAPTURE_HEADER + RING), 0);
	pass_packets(&tapped, 64, 60);
	untap(&tapped);
}

TEST(memory_that_is_no_ring_is_refused)
{
	struct xskd_capture capture;
	struct xskd_capture_reader reader;
	struct xskd_capture_ring *ring = (struct xskd_capture_ring *)new_ring(0);

	EQUAL(xskd_capture_open(&capture, ring, XSKD_CAPTURE_HEADER), EINVAL);
	EQUAL(xskd_capture_open(&capture, ring, XSKD_CAPTURE_HEADER - 8), EINVAL);
	EQUAL(xskd_capture_open(&capture, ring, XSKD_CAPTURE_HEADER + RING - 8), EINVAL);
	ring->layout_version++;
	EQUAL(xskd_capture_open(&capture, ring, XSKD_CAPTURE_HEADER + RING), EINVAL);
	EQUAL(xskd_capture_reader_open(&reader, ring, XSKD_CAPTURE_HEADER + RING), EINVAL);
	free(ring);
}

TEST(a_reader_survives_whatever_a_worker_writes)
{
	static const struct xskd_capture_record lies[] = {
		{ .port = FAKE_PORTS, .kept = 60 }, { .direction = XSKD_WAYS, .kept = 60 },
		{ .kept = UINT32_MAX }, { .kept = 65536 }, { .kept = 400 },
	};
	struct tapped tapped;
	uint64_t packets;

	for (size_t i = 0; i < LENGTH(lies); i++) {
		tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
		pass_packets(&tapped, 2, 60);
		memcpy((uint8_t *)tapped.ring + XSKD_CAPTURE_HEADER + RECORD, &lies[i], sizeof(lies[i]));
		packets = 64;
		EQUAL(xskd_capture_read(&tapped.reader, 1, blocks, sizeof(blocks), &packets), -1);
		EQUAL(packets, 1);
		untap(&tapped);
	}
	for (uint64_t producer = 1; producer < 3 * RING; producer += RING - 1) {
		tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
		tapped.ring->producer = producer == RING ? 8 : producer;
		packets = 64;
		EQUAL(xskd_capture_read(&tapped.reader, 1, blocks, sizeof(blocks), &packets), -1);
		untap(&tapped);
	}
}

/* ---- several rings ----------------------------------------------------------------------------- */

TEST(two_rings_are_read_in_order_of_time_and_only_as_far_as_there_is_room)
{
	struct tapped one, other;
	struct xskd_capture_reader readers[2];
	uint64_t packets = 3, last = 0;
	int64_t bytes;

	tap(&one, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
	pass_packets(&one, 2, 60);
	tap(&other, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
	other.fake->now_ns += 1;
	pass_packets(&other, 2, 60);
	readers[0] = other.reader;
	readers[1] = one.reader;
	readers[0].interface = 20;
	bytes = xskd_capture_read(readers, 2, blocks, 3 * 104 - 1, &packets);
	EQUAL(packets, 2);
	EQUAL(bytes, 2 * 104);
	for (uint32_t i = 0; i < 2; i++) {
		uint64_t at = (uint64_t)block_at(i)->high << 32 | block_at(i)->low;

		CHECK(at >= last);
		last = at;
	}
	packets = 64;
	EQUAL(xskd_capture_read(readers, 2, blocks, sizeof(blocks), &packets), 2 * 104);
	EQUAL(block_at(1)->interface, 20);
	untap(&other);
	free(one.ring);
	fake_free(one.fake);
}

/* ---- filters ----------------------------------------------------------------------------------- */

static const struct bpf_insn second_byte_of_number_is_zero[] = {
	{ BPF_LD | BPF_B | BPF_ABS, 0, 0, 0 }, { BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0 },
	{ BPF_RET | BPF_K, 0, 0, 65535 }, { BPF_RET | BPF_K, 0, 0, 0 },
};

TEST(a_filter_decides_what_is_copied)
{
	struct tapped tapped;
	uint64_t wanted = 0;

	tap(&tapped, XSKD_UNCHANGED, 1 << XSKD_IN, 0);
	memcpy(tapped.capture.filter, second_byte_of_number_is_zero, sizeof(second_byte_of_number_is_zero));
	tapped.capture.filter_length = LENGTH(second_byte_of_number_is_zero);
	CHECK(xskd_capture_filter_ok(tapped.capture.filter, tapped.capture.filter_length));
	for (uint32_t number = 0; number < 1000; number++) {
		bool keep = fake_byte(number, 0) == 0;

		pass_packets(&tapped, 1, 60);
		EQUAL(read_blocks(&tapped, 64), keep);
		wanted += keep;
	}
	CHECK(wanted > 0);
	EQUAL(tapped.ring->ports[0].copied, wanted);
	EQUAL(tapped.ring->ports[0].refused, 1000 - wanted);
	untap(&tapped);
}

static bool ok(struct bpf_insn first, struct bpf_insn second)
{
	const struct bpf_insn filter[] = { first, second, { BPF_RET | BPF_K, 0, 0, 1 } };

	return xskd_capture_filter_ok(filter, LENGTH(filter));
}

static const struct bpf_insn nothing = { BPF_LD | BPF_IMM, 0, 0, 0 };

TEST(a_filter_that_may_not_end_or_leaves_its_bounds_is_refused)
{
	CHECK(ok(nothing, nothing));
	CHECK(ok((struct bpf_insn){ BPF_JMP | BPF_JA, 0, 0, 1 }, nothing));
	CHECK(!ok((struct bpf_insn){ BPF_JMP | BPF_JA, 0, 0, 2 }, nothing));
	CHECK(!ok(nothing, (struct bpf_insn){ BPF_JMP | BPF_JA, 0, 0, (uint32_t)-2 }));
	CHECK(!ok((struct bpf_insn){ BPF_JMP | BPF_JEQ, 0, 2, 0 }, nothing));
	CHECK(!ok((struct bpf_insn){ BPF_LD | BPF_MEM, 0, 0, BPF_MEMWORDS }, nothing));
	CHECK(!ok((struct bpf_insn){ BPF_ST, 0, 0, UINT32_MAX }, nothing));
	CHECK(!ok((struct bpf_insn){ BPF_ALU | BPF_DIV | BPF_K, 0, 0, 0 }, nothing));
	CHECK(!xskd_capture_filter_ok(&nothing, 1));
	CHECK(!xskd_capture_filter_ok(&nothing, 0));
	CHECK(!xskd_capture_filter_ok(&nothing, XSKD_CAPTURE_MAX_FILTER + 1));
}

/* libpcap's interpreter ends the process at an instruction it does not know. */
TEST(every_instruction_that_is_allowed_can_be_run)
{
	static const uint32_t operands[] = { 0, 1, 15, 31, 32, 60, UINT32_MAX, INT32_MIN, 0xfffff000u };
	uint8_t packet[60] = { 0xff, 0xff, 0xff, 0xff };
	uint32_t allowed = 0;

	for (uint32_t code = 0; code <= UINT16_MAX; code++)
		for (size_t i = 0; i < LENGTH(operands) * LENGTH(operands); i++) {
			const struct bpf_insn filter[] = {
				{ BPF_LDX | BPF_IMM, 0, 0, operands[i / LENGTH(operands)] },
				{ (uint16_t)code, 0, 0, operands[i % LENGTH(operands)] },
				{ BPF_RET | BPF_A, 0, 0, 0 }, { BPF_RET | BPF_K, 0, 0, 0 },
			};

			if (!xskd_capture_filter_ok(filter, LENGTH(filter)))
				continue;
			bpf_filter(filter, packet, sizeof(packet), sizeof(packet));
			allowed++;
		}
	CHECK(allowed > 40 * LENGTH(operands));
}

/* ---- route ------------------------------------------------------------------------------------- */

static void check_routed(const struct block *block, uint32_t port, bool out, uint32_t number, uint32_t egress)
{
	const struct routed routed = { .number = number, .egress = egress, .family = number % 3 ? 4 : 6 };
	uint8_t wanted[60];

	routed_write(&routed, 60, out, wanted);
	EQUAL(block->interface, 10 + port);
	EQUAL(block->packet[((block->kept + 3) & ~3u) + 4], out ? 2 : 1);       /* the flags' value */
	EQUAL(block->kept, 60);
	EQUAL(memcmp(block->packet, wanted, 60), 0);
}

static void deliver_to(struct tapped *tapped, int to, uint32_t n)
{
	routed_to = to;
	EQUAL(fake_deliver(&tapped->fake->ports[0], n, 60), n);
	routed_to = ROUTED_BY_NUMBER;
}

static void tap_routed(struct tapped *tapped)
{
	tap(tapped, XSKD_ROUTE, 1 << XSKD_IN | 1 << XSKD_OUT, 0);
	tapped->fake->on_arrival = routed_arrival;
	tapped->fake->forward.now_ns = tapped->fake->now_ns;
	tapped->reader.ports = 3;
}

TEST(routed_packets_as_they_came_and_as_they_left_where_they_left)
{
	struct tapped tapped;

	tap_routed(&tapped);
	deliver_to(&tapped, 1, 2);
	xskd_forward_turn(&tapped.fake->forward);
	EQUAL(read_blocks(&tapped, 64), 4);
	check_routed(block_at(0), 0, false, 0, 1);
	check_routed(block_at(1), 0, false, 1, 1);
	check_routed(block_at(2), 1, true, 0, 1);
	check_routed(block_at(3), 1, true, 1, 1);
	deliver_to(&tapped, ROUTED_NOWHERE, 1);
	deliver_to(&tapped, 2, 1);
	xskd_forward_turn(&tapped.fake->forward);
	EQUAL(read_blocks(&tapped, 64), 3);
	check_routed(block_at(0), 0, false, 2, routed_egress(2, 3));
	check_routed(block_at(1), 0, false, 3, 2);
	check_routed(block_at(2), 2, true, 3, 2);
	untap(&tapped);
}

/* Waiting is not arriving: what is held up is copied when it goes, or is dropped; and once. */
TEST(routed_packets_that_wait_are_copied_once)
{
	struct tapped tapped;

	tap_routed(&tapped);
	tapped.fake->ports[1].tx_budget = 0;
	for (int i = 0; i < 2; i++) {
		deliver_to(&tapped, 1, 64);
		xskd_forward_turn(&tapped.fake->forward);
	}
	deliver_to(&tapped, 1, 2);
	deliver_to(&tapped, 2, 3);
	for (int i = 0; i < 5; i++)
		xskd_forward_turn(&tapped.fake->forward);
	EQUAL(tapped.ring->ports[0].seen, 128);
	tapped.fake->forward.now_ns += 20 * MS;
	xskd_forward_turn(&tapped.fake->forward);
	EQUAL(tapped.fake->ports[2].sent, 3);
	EQUAL(tapped.ring->ports[0].seen, 128 + 5);
	EQUAL(tapped.ring->ports[1].seen, 128);
	EQUAL(tapped.ring->ports[2].seen, 3);
	EQUAL(tapped.fake->counters.ports[0].drops[XSKD_DROP_TX_FULL], 2);
	untap(&tapped);
}
