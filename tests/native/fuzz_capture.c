/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer against what a capture takes from strangers: a filter that a reader hands to a worker, and a ring that
 * a worker hands to a reader. A filter that is let in ends, and reads nothing but the packet; what is read of a ring
 * stays within the room for it, and is whole blocks.
 */
#include "hostile.h"

#define RINGS_OF_CAPTURE 2
#define MOST_INSTRUCTIONS 16
#define ROOM 70000u             /* bytes for blocks: one of the longest packet has room */

/* Real instructions most of the time, or hardly any filter would be let in. */
static struct bpf_insn any_instruction(void)
{
	static const uint16_t codes[] = {
		BPF_LD | BPF_W | BPF_ABS, BPF_LD | BPF_B | BPF_IND, BPF_LD | BPF_W | BPF_LEN, BPF_LD | BPF_MEM,
		BPF_LDX | BPF_B | BPF_MSH, BPF_LDX | BPF_MEM, BPF_ST, BPF_STX, BPF_ALU | BPF_DIV | BPF_X,
		BPF_ALU | BPF_MOD | BPF_X, BPF_ALU | BPF_LSH | BPF_X, BPF_ALU | BPF_NEG, BPF_JMP | BPF_JA,
		BPF_JMP | BPF_JEQ | BPF_K, BPF_JMP | BPF_JSET | BPF_X, BPF_RET | BPF_A, BPF_MISC | BPF_TAX,
	};
	const uint32_t which = any_below(SIZE_OF(codes) + 1);
	const uint16_t code = which < SIZE_OF(codes) ? codes[which] : (uint16_t)any_number(2);
	const uint8_t jt = any_below(4), jf = any_below(4);

	return (struct bpf_insn){ code, jt, jf, (uint32_t)(any_below(4) ? any_byte() : any_number(4)) };
}

/* The packet ends where access does, for libpcap is not compiled with the sanitizers. */
static void filter_packet(void)
{
	const uint32_t length = any_below(65), n = 1 + any_below(MOST_INSTRUCTIONS);
	struct bpf_insn *filter = malloc(n * sizeof(*filter));
	uint8_t *packet = hostile_area(length);

	for (uint32_t i = 0; i < n; i++)
		filter[i] = any_instruction();
	filter[n - 1] = (struct bpf_insn){ BPF_RET | BPF_K, 0, 0, 1 };
	for (uint32_t i = 0; i < length; i++)
		packet[i] = any_byte();
	if (xskd_capture_filter_ok(filter, n))
		bpf_filter(filter, packet, length + any_below(2) * 1000, length);
	free(filter);
}

static void any_records(struct xskd_capture_ring *ring, uint64_t size)
{
	uint8_t *bytes = (uint8_t *)ring + XSKD_CAPTURE_HEADER;
	uint64_t at = 0;

	for (uint32_t n = any_below(8); n > 0 && at + sizeof(struct xskd_capture_record) < size; n--) {
		const struct xskd_capture_record record = {
			.time_ns = any_byte(), .port = any_below(4), .direction = any_below(3),
			.original = any_byte(), .kept = (uint32_t)any_number(1 + any_below(4)),
		};

		memcpy(bytes + at, &record, sizeof(record));
		at += sizeof(record) + ((record.kept + 7ull) & ~7ull) % size;
	}
	ring->layout_version = XSKD_CAPTURE_LAYOUT + (any_byte() == 255);
	ring->producer = any_below(4) ? at : any_number(8);
	ring->consumer = any_below(8) == 7 ? any_number(8) : 0;
}

/* Blocks one after the other, as long as they say, and nothing behind the last one. */
static void check_blocks(const uint8_t *blocks, int64_t bytes, uint64_t packets)
{
	int64_t at = 0;

	for (; packets > 0; packets--) {
		uint32_t length, again;

		memcpy(&length, blocks + at + 4, 4);
		memcpy(&again, blocks + at + length - 4, 4);
		if (length != again || length % 4)
			abort();
		at += length;
	}
	if (at != bytes)
		abort();
}

static void read_rings(void)
{
	struct xskd_capture_reader readers[RINGS_OF_CAPTURE] = { 0 };
	struct xskd_capture_ring *rings[RINGS_OF_CAPTURE];
	uint8_t *blocks = malloc(ROOM);
	uint32_t open = 0;

	for (uint32_t i = 0; i < RINGS_OF_CAPTURE; i++) {
		const uint64_t size = 256u << any_below(4);

		rings[i] = calloc(1, XSKD_CAPTURE_HEADER + size);
		any_records(rings[i], size);
		readers[open].ports = 2;
		open += xskd_capture_reader_open(&readers[open], rings[i], XSKD_CAPTURE_HEADER + size) == 0;
	}
	for (uint32_t rounds = any_below(4); rounds > 0; rounds--) {
		const uint32_t room = any_below(2) ? ROOM : any_byte() * 4u;
		uint64_t packets = any_byte();
		const int64_t bytes = xskd_capture_read(readers, open, blocks, room, &packets);

		if (bytes > (int64_t)room)
			abort();
		if (bytes >= 0)
			check_blocks(blocks, bytes, packets);
		rings[any_below(RINGS_OF_CAPTURE)]->producer += any_byte();
	}
	for (uint32_t i = 0; i < RINGS_OF_CAPTURE; i++)
		free(rings[i]);
	free(blocks);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	hostile.at = data;
	hostile.end = data + size;
	if (any_below(2))
		filter_packet();
	else
		read_rings();
	return 0;
}
