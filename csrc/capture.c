/* SPDX-License-Identifier: Apache-2.0
 *
 * Both ends of a capture's ring: a worker that must not be held up or misled by its reader, and a reader that
 * must not be misled by its worker. See capture.h. Nothing here calls the kernel but for the time.
 */
#include "capture.h"

#include <errno.h>
#include <string.h>

#include "frames.h"
#include "packets.h"
#include "ring.h"
#include "syscalls.h"

#define PADDED(bytes, to) (((uint64_t)(bytes) + (to) - 1) & ~((uint64_t)(to) - 1))

static uint64_t size_of_record(uint32_t kept)
{
	return sizeof(struct xskd_capture_record) + PADDED(kept, 8);
}

static uint8_t *bytes_of(const struct xskd_capture_ring *ring)
{
	return (uint8_t *)ring + XSKD_CAPTURE_HEADER;
}

/* 0 for what is no ring of this layout. */
static uint64_t usable_size(const struct xskd_capture_ring *ring, uint64_t bytes)
{
	uint64_t size = bytes - XSKD_CAPTURE_HEADER;

	if (bytes <= XSKD_CAPTURE_HEADER || size & (size - 1) || ring->layout_version != XSKD_CAPTURE_LAYOUT)
		return 0;
	return size;
}

/* ---- the worker -------------------------------------------------------------------------------- */

/* The instructions that libpcap's interpreter knows. It meets another one with abort(), and bpf_validate does
 * not look at every bit. */
static bool known(uint16_t code)
{
	switch (code) {
	case BPF_LD | BPF_IMM: case BPF_LD | BPF_MEM: case BPF_LD | BPF_W | BPF_LEN:
	case BPF_LD | BPF_W | BPF_ABS: case BPF_LD | BPF_H | BPF_ABS: case BPF_LD | BPF_B | BPF_ABS:
	case BPF_LD | BPF_W | BPF_IND: case BPF_LD | BPF_H | BPF_IND: case BPF_LD | BPF_B | BPF_IND:
	case BPF_LDX | BPF_IMM: case BPF_LDX | BPF_MEM: case BPF_LDX | BPF_W | BPF_LEN:
	case BPF_LDX | BPF_B | BPF_MSH:
	case BPF_ST: case BPF_STX:
	case BPF_ALU | BPF_ADD | BPF_K: case BPF_ALU | BPF_ADD | BPF_X:
	case BPF_ALU | BPF_SUB | BPF_K: case BPF_ALU | BPF_SUB | BPF_X:
	case BPF_ALU | BPF_MUL | BPF_K: case BPF_ALU | BPF_MUL | BPF_X:
	case BPF_ALU | BPF_DIV | BPF_K: case BPF_ALU | BPF_DIV | BPF_X:
	case BPF_ALU | BPF_MOD | BPF_K: case BPF_ALU | BPF_MOD | BPF_X:
	case BPF_ALU | BPF_AND | BPF_K: case BPF_ALU | BPF_AND | BPF_X:
	case BPF_ALU | BPF_OR | BPF_K: case BPF_ALU | BPF_OR | BPF_X:
	case BPF_ALU | BPF_XOR | BPF_K: case BPF_ALU | BPF_XOR | BPF_X:
	case BPF_ALU | BPF_LSH | BPF_K: case BPF_ALU | BPF_LSH | BPF_X:
	case BPF_ALU | BPF_RSH | BPF_K: case BPF_ALU | BPF_RSH | BPF_X:
	case BPF_ALU | BPF_NEG:
	case BPF_JMP | BPF_JA:
	case BPF_JMP | BPF_JEQ | BPF_K: case BPF_JMP | BPF_JEQ | BPF_X:
	case BPF_JMP | BPF_JGT | BPF_K: case BPF_JMP | BPF_JGT | BPF_X:
	case BPF_JMP | BPF_JGE | BPF_K: case BPF_JMP | BPF_JGE | BPF_X:
	case BPF_JMP | BPF_JSET | BPF_K: case BPF_JMP | BPF_JSET | BPF_X:
	case BPF_RET | BPF_K: case BPF_RET | BPF_A:
	case BPF_MISC | BPF_TAX: case BPF_MISC | BPF_TXA:
		return true;
	default:
		return false;
	}
}

/* libpcap lets a program jump back, for its `protochain`; here it could turn for ever. */
int xskd_capture_filter_ok(const struct bpf_insn *filter, uint32_t length)
{
	if (length == 0 || length > XSKD_CAPTURE_MAX_FILTER)
		return 0;
	for (uint32_t i = 0; i < length; i++) {
		if (!known(filter[i].code))
			return 0;
		if (filter[i].code == (BPF_JMP | BPF_JA) && filter[i].k >= length - i)
			return 0;
	}
	return bpf_validate(filter, (int)length);
}

int xskd_capture_open(struct xskd_capture *capture, struct xskd_capture_ring *ring, uint64_t bytes)
{
	capture->size = usable_size(ring, bytes);
	capture->ring = ring;
	/* Whatever the reader may have put there: any multiple of 8 is a place in the ring. */
	capture->producer = __atomic_load_n(&ring->producer, __ATOMIC_RELAXED) & ~7ull;
	return capture->size ? 0 : EINVAL;
}

/* Room in bytes. A reader that claims to have taken what was never there has none. */
static uint64_t room(const struct xskd_capture *capture)
{
	uint64_t used = capture->producer - __atomic_load_n(&capture->ring->consumer, __ATOMIC_ACQUIRE);

	return used <= capture->size ? capture->size - used : 0;
}

static void put(const struct xskd_capture *capture, uint64_t at, const void *from, uint64_t n)
{
	uint8_t *bytes = bytes_of(capture->ring);
	uint64_t offset = at & (capture->size - 1), until_end = capture->size - offset;
	uint64_t first = n < until_end ? n : until_end;

	memcpy(bytes + offset, from, first);
	memcpy(bytes, (const uint8_t *)from + first, n - first);
}

/* One packet, whose descriptors begin at `at`. A filter sees its first frame: no protocol has its headers
 * behind that, and what lies there does not match. */
static void copy(struct xskd_capture *capture, struct xskd_capture_record *record, const struct xskd_port *port,
		 const struct xskd_ring *ring, uint32_t at)
{
	struct xskd_capture_counters *counters = &capture->ring->ports[record->port];
	const struct xdp_desc *first = ring_desc(ring, at);
	uint64_t needed, to;

	count(&counters->seen, 1);
	if (capture->filter_length && bpf_filter(capture->filter, port->umem->area + first->addr, record->original,
						 first->len) == 0) {
		count(&counters->refused, 1);
		return;
	}
	record->kept = record->original < capture->snaplen ? record->original : capture->snaplen;
	needed = size_of_record(record->kept);
	if (needed > room(capture)) {
		count(&counters->lost, 1);
		return;
	}
	put(capture, capture->producer, record, sizeof(*record));
	to = capture->producer + sizeof(*record);
	for (uint32_t left = record->kept, n; left; left -= n, to += n) {
		const struct xdp_desc *desc = ring_desc(ring, at++);

		n = at_most(left, desc->len);
		put(capture, to, port->umem->area + desc->addr, n);
	}
	capture->producer += needed;
	__atomic_store_n(&capture->ring->producer, capture->producer, __ATOMIC_RELEASE);
	count(&counters->copied, 1);
}

/* The length of a packet in n descriptors; 0: it is none, and the loop counts it. */
static uint32_t length_of_packet(const struct xskd_port *port, const struct xskd_ring *ring, uint8_t owner,
				 uint32_t at, uint32_t n)
{
	const struct frames frames = frames_of(port->umem);
	uint32_t length = 0;

	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = ring_desc(ring, at + i);

		if (!owned(&frames, desc->addr, owner) ||
		    !fits(&frames, desc->addr, port->multi_buffer ? part_of(desc) : length_of(desc)))
			return 0;
		length += desc->len;
	}
	return length;
}

void __attribute__((noinline, cold))
xskd_capture_burst(struct xskd_capture *capture, const struct xskd_port *port, enum xskd_ring_name name,
		   uint32_t offset, uint32_t n)
{
	const bool in = name == XSKD_RX;
	const uint8_t owner = (uint8_t)((in ? OWNER_RX_SIDE : OWNER_TX_SIDE) | port->index);
	const struct xskd_ring *ring = &port->rings[name];
	struct xskd_capture_record record = { .port = port->index, .direction = in ? XSKD_IN : XSKD_OUT };

	if (n == 0 || !(capture->directions & 1u << record.direction))
		return;
	record.time_ns = xskd_sys_wall_ns();
	for (uint32_t at = offset, next; n; at += next, n -= next) {
		next = port->multi_buffer ? packet_at(ring, at, n) : 1;
		if (next == 0)
			return;
		record.original = length_of_packet(port, ring, owner, at, next);
		if (record.original)
			copy(capture, &record, port, ring, at);
	}
}

/* ---- the reader -------------------------------------------------------------------------------- */

/* An Enhanced Packet Block with its flags, see draft-ietf-opsawg-pcapng. The packet stands between the two. */
struct block_head {
	uint32_t type, length, interface, time_high, time_low, kept, original;
};

struct block_tail {
	uint16_t flags_code, flags_length;
	uint32_t flags;
	uint16_t end_code, end_length;
	uint32_t length;
};

enum { ENHANCED_PACKET = 6, OPTION_FLAGS = 2, INBOUND = 1, OUTBOUND = 2 };

int xskd_capture_reader_open(struct xskd_capture_reader *reader, struct xskd_capture_ring *ring, uint64_t bytes)
{
	reader->size = usable_size(ring, bytes);
	reader->ring = ring;
	reader->consumer = __atomic_load_n(&ring->consumer, __ATOMIC_RELAXED);
	reader->has_next = 0;
	return reader->size ? 0 : EINVAL;
}

static void take(const struct xskd_capture_reader *reader, uint64_t at, void *to, uint64_t n)
{
	const uint8_t *bytes = bytes_of(reader->ring);
	uint64_t offset = at & (reader->size - 1), until_end = reader->size - offset;
	uint64_t first = n < until_end ? n : until_end;

	memcpy(to, bytes + offset, first);
	memcpy((uint8_t *)to + first, bytes, n - first);
}

/* Read the head of the next record, if there is one. False: it cannot be right. */
static bool look(struct xskd_capture_reader *reader)
{
	const struct xskd_capture_record *next = &reader->next;
	uint64_t used = reader->end - reader->consumer;

	if (reader->has_next || used == 0)
		return true;
	if (used > reader->size || used < sizeof(*next))
		return false;
	take(reader, reader->consumer, &reader->next, sizeof(*next));
	reader->has_next = next->kept <= XSKD_CAPTURE_MAX_LENGTH && size_of_record(next->kept) <= used &&
			   next->port < reader->ports && next->direction < XSKD_WAYS;
	return reader->has_next;
}

/* The ring with the oldest packet; NULL: none has any, or (`sound` says) one of them is broken. */
static struct xskd_capture_reader *oldest(struct xskd_capture_reader *readers, uint32_t number, bool *sound)
{
	struct xskd_capture_reader *found = NULL;

	for (uint32_t i = 0; i < number; i++) {
		if (!look(&readers[i])) {
			*sound = false;
			return NULL;
		}
		if (readers[i].has_next && (!found || readers[i].next.time_ns < found->next.time_ns))
			found = &readers[i];
	}
	return found;
}

static uint64_t size_of_block(const struct xskd_capture_record *record)
{
	return sizeof(struct block_head) + PADDED(record->kept, 4) + sizeof(struct block_tail);
}

static void write_block(const struct xskd_capture_reader *reader, uint8_t *block)
{
	const struct xskd_capture_record *next = &reader->next;
	const uint32_t length = (uint32_t)size_of_block(next);
	const struct block_head head = {
		.type = ENHANCED_PACKET, .length = length, .interface = reader->interface + next->port,
		.time_high = (uint32_t)(next->time_ns >> 32), .time_low = (uint32_t)next->time_ns,
		.kept = next->kept, .original = next->original,
	};
	const struct block_tail tail = {
		.flags_code = OPTION_FLAGS, .flags_length = sizeof(tail.flags),
		.flags = next->direction == XSKD_IN ? INBOUND : OUTBOUND, .length = length,
	};
	uint8_t *packet = block + sizeof(head);

	memcpy(block, &head, sizeof(head));
	memset(packet + (next->kept & ~3u), 0, PADDED(next->kept, 4) - (next->kept & ~3u));
	take(reader, reader->consumer + sizeof(*next), packet, next->kept);
	memcpy(packet + PADDED(next->kept, 4), &tail, sizeof(tail));
}

int64_t xskd_capture_read(struct xskd_capture_reader *readers, uint32_t number, uint8_t *blocks, uint64_t room,
			  uint64_t *packets)
{
	uint64_t written = 0, most = *packets;
	bool sound = true;

	for (uint32_t i = 0; i < number; i++)
		readers[i].end = __atomic_load_n(&readers[i].ring->producer, __ATOMIC_ACQUIRE);
	for (*packets = 0; *packets < most; ++*packets) {
		struct xskd_capture_reader *reader = oldest(readers, number, &sound);

		if (!reader || room - written < size_of_block(&reader->next))
			break;
		write_block(reader, blocks + written);
		written += size_of_block(&reader->next);
		reader->consumer += size_of_record(reader->next.kept);
		reader->has_next = 0;
	}
	for (uint32_t i = 0; i < number; i++)
		__atomic_store_n(&readers[i].ring->consumer, readers[i].consumer, __ATOMIC_RELEASE);
	return sound ? (int64_t)written : -1;
}
