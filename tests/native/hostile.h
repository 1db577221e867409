/* SPDX-License-Identifier: Apache-2.0
 *
 * A kernel that does anything it likes, as the bytes of a fuzzer say: entries that name what is not there, or not
 * the kernel's; indices that jump; completions that come twice or never; chains that are cut off; every errno. What
 * must hold whatever it does is in laws.h.
 *
 * The kernel acts between two calls of the worker and inside its system calls. Entries do not change while the
 * worker reads them: that they do not is the one thing it takes from the kernel on trust.
 *
 * All memory ends where it seems to: the UMEM where access does, and each ring and index is an allocation of its
 * own, so that the address sanitizer sees any access beside them.
 */
#ifndef HOSTILE_H
#define HOSTILE_H

#include <errno.h>
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../../csrc/capture.h"
#include "../../csrc/frames.h"
#include "../../csrc/ring.h"
#include "../../csrc/syscalls.h"
#include "routed.h"

#define PORTS 3
#define MOST_FRAMES 64u
#define MOST_FRAME_SIZE 4096u
#define MOST_AREA (MOST_FRAMES * MOST_FRAME_SIZE)
#define GUARD (1u << 20)        /* bytes without access on both sides of the UMEM */
#define CAPTURE_SIZE 16384u     /* bytes of its ring */

#define SIZE_OF(array) (uint32_t)(sizeof(array) / sizeof((array)[0]))

struct hostile_port {
	struct xskd_port port;
	uint32_t kernel[XSKD_RINGS];    /* how far the kernel has got with each ring */
	uint32_t checked[XSKD_RINGS];   /* how far what the worker has submitted was looked at */
	uint64_t completed;             /* the last address */
};

struct hostile {
	struct xskd_forward forward;
	struct xskd_umem umem;
	struct xskd_counters *counters, before;
	struct hostile_port ports[PORTS];
	struct xskd_capture capture;
	struct xskd_capture_ring *ring;
	struct xdp_desc held[64];       /* in the hands of a user of the library */
	uint32_t held_count;
	uint64_t received, transmitted; /* packets, by that user */
	uint64_t now_ns;
	enum { WELL, ACTS, DEAF } calls;        /* a system call does what it should, anything, or nothing */
	const uint8_t *at, *end;        /* the input */
};

static struct hostile hostile;

/* ---- the input: decisions, and after its end only zeros ------------------------------------------- */

static inline uint8_t any_byte(void)
{
	return hostile.at < hostile.end ? *hostile.at++ : 0;
}

static inline uint32_t any_below(uint32_t n)
{
	return any_byte() % n;
}

static inline uint64_t any_number(uint32_t bytes)
{
	uint64_t number = 0;

	while (bytes-- > 0)
		number = number << 8 | any_byte();
	return number;
}

static inline struct hostile_port *any_port(void)
{
	return &hostile.ports[any_below(hostile.forward.port_count)];
}

/* ---- making one ---------------------------------------------------------------------------------- */

/* The UMEM ends where access does, and what is not of it in front of it is poisoned. */
static inline uint8_t *hostile_area(size_t size)
{
	static uint8_t *map;

	if (!map) {
		map = mmap(NULL, 2 * GUARD + MOST_AREA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (map == MAP_FAILED || mprotect(map + GUARD, MOST_AREA, PROT_READ | PROT_WRITE))
			abort();
	}
	ASAN_POISON_MEMORY_REGION(map + GUARD, MOST_AREA - size);
	ASAN_UNPOISON_MEMORY_REGION(map + GUARD + MOST_AREA - size, size);
	return map + GUARD + MOST_AREA - size;
}

static inline size_t entry_size(int name)
{
	return name == XSKD_RX || name == XSKD_TX ? sizeof(struct xdp_desc) : sizeof(uint64_t);
}

static inline bool produces(int name)
{
	return name == XSKD_FILL || name == XSKD_TX;
}

/* The word that the kernel writes. */
static inline uint32_t *theirs(struct hostile_port *port, int name)
{
	return produces(name) ? port->port.rings[name].consumer : port->port.rings[name].producer;
}

static inline void new_indices(struct hostile_port *port, uint32_t start)
{
	for (int name = 0; name < XSKD_RINGS; name++) {
		struct xskd_ring *ring = &port->port.rings[name];

		*ring->producer = *ring->consumer = ring->own = start;
		port->kernel[name] = port->checked[name] = start;
		memset(ring->entries, 0, ring->size * entry_size(name));
	}
}

/* Each index is an allocation of its own, so that nothing beside it can be touched either. */
static inline void new_port(uint32_t index, bool several)
{
	struct hostile_port *port = &hostile.ports[index];

	*port = (struct hostile_port){ .port = { .umem = &hostile.umem, .index = index, .fd = (int)index } };
	port->port.counters = &hostile.counters->ports[index];
	port->port.multi_buffer = several;
	port->port.max_length = several ? 9018 : at_most(1518, hostile.umem.frame_size);
	for (int name = 0; name < XSKD_RINGS; name++) {
		const uint32_t size = 1u << any_below(8);

		port->port.rings[name] = (struct xskd_ring){
			.producer = calloc(1, 4), .consumer = calloc(1, 4), .flags = calloc(1, 4),
			.entries = calloc(size, entry_size(name)), .size = size,
		};
		*port->port.rings[name].flags = XDP_RING_NEED_WAKEUP;
	}
	hostile.forward.ports[index] = &port->port;
}

static inline void new_umem(void)
{
	struct xskd_umem *umem = &hostile.umem;

	umem->frame_shift = 11 + any_below(2);
	umem->frame_size = 1u << umem->frame_shift;
	umem->frames = 1 + any_below(MOST_FRAMES);
	umem->area = hostile_area((size_t)umem->frames << umem->frame_shift);
	umem->owner = calloc(umem->frames, 1);
	umem->free = calloc(umem->frames, sizeof(uint32_t));
	umem->intent = &hostile.counters->intent;
}

/* A worker of any kind whose rings are fresh and empty; nothing on FILL yet. */
static inline void hostile_new(const uint8_t *data, size_t size)
{
	bool several;

	memset(&hostile, 0, sizeof(hostile));
	hostile.at = data;
	hostile.end = data + size;
	hostile.now_ns = 1000;
	hostile.counters = calloc(1, sizeof(*hostile.counters));
	hostile.ring = calloc(1, XSKD_CAPTURE_HEADER + CAPTURE_SIZE);
	hostile.forward.action = any_below(3);
	hostile.forward.port_count = hostile.forward.action == XSKD_UNCHANGED ? 2 : 1 + any_below(PORTS);
	hostile.forward.poll = any_below(3);
	hostile.forward.control_fd = -1;
	hostile.forward.counters = hostile.counters;
	several = any_below(2);
	new_umem();
	for (uint32_t i = 0; i < hostile.forward.port_count; i++) {
		new_port(i, several);
		hostile.forward.egress[i] = hostile.forward.action == XSKD_UNCHANGED ? 1 - i : i;
	}
}

static inline void hostile_free(void)
{
	for (uint32_t i = 0; i < hostile.forward.port_count; i++)
		for (int name = 0; name < XSKD_RINGS; name++) {
			struct xskd_ring *ring = &hostile.ports[i].port.rings[name];

			free(ring->producer);
			free(ring->consumer);
			free(ring->flags);
			free(ring->entries);
		}
	free(hostile.umem.owner);
	free(hostile.umem.free);
	free(hostile.counters);
	free(hostile.ring);
}

/* A worker begins with new sockets; memory and counters stay, as with its supervisor. */
static inline void hostile_begin(void)
{
	static const uint32_t starts[] = { 0, UINT32_MAX - 5, 0x7ffffffe, 1000 };
	const uint32_t start = starts[any_below(4)];

	hostile.held_count = 0;
	xskd_umem_reset(&hostile.umem);
	for (uint32_t i = 0; i < hostile.forward.port_count; i++) {
		struct hostile_port *port = &hostile.ports[i];
		const struct xskd_port made = port->port;

		port->port = (struct xskd_port){ .umem = made.umem, .counters = made.counters, .fd = made.fd,
						 .index = made.index, .max_length = made.max_length,
						 .multi_buffer = made.multi_buffer };
		memcpy(port->port.rings, made.rings, sizeof(made.rings));
		port->port.counters->rx_rest = 0;
		new_indices(port, start);
		xskd_refill(&port->port);
	}
}

/* ---- what a good kernel does ---------------------------------------------------------------------- */

static inline struct xdp_desc *their_desc(struct hostile_port *port, int name)
{
	const struct xskd_ring *ring = &port->port.rings[name];

	return (struct xdp_desc *)ring->entries + (port->kernel[name] & ring_mask(ring));
}

static inline uint64_t *their_addr(struct hostile_port *port, int name)
{
	const struct xskd_ring *ring = &port->port.rings[name];

	return (uint64_t *)ring->entries + (port->kernel[name] & ring_mask(ring));
}

static inline void put_rx(struct hostile_port *port, struct xdp_desc desc)
{
	*their_desc(port, XSKD_RX) = desc;
	*theirs(port, XSKD_RX) = ++port->kernel[XSKD_RX];
}

static inline void put_completion(struct hostile_port *port, uint64_t addr)
{
	*their_addr(port, XSKD_COMPLETION) = port->completed = addr;
	*theirs(port, XSKD_COMPLETION) = ++port->kernel[XSKD_COMPLETION];
}

/* What routed.h fills its packets with. */
uint8_t fake_byte(uint32_t number, uint32_t offset)
{
	return (uint8_t)(number + offset);
}

/* One entry with a packet, or a piece of one, in a frame from FILL; with metadata where there is room for it. */
static inline void deliver_one(struct hostile_port *port, uint32_t length, uint32_t options)
{
	const struct xskd_umem *umem = &hostile.umem;
	const struct routed routed = { .from = port->port.index, .number = hostile.now_ns & 0xff,
				       .family = length < 54 || length % 2 ? 4 : 6,
				       .egress = (length >> 1) % PORTS };
	uint8_t *packet;
	uint64_t addr;

	if (port->kernel[XSKD_FILL] == port->port.rings[XSKD_FILL].own)
		return;
	addr = *their_addr(port, XSKD_FILL) + FAKE_OFFSET;
	*theirs(port, XSKD_FILL) = ++port->kernel[XSKD_FILL];
	if (addr >> umem->frame_shift >= umem->frames || (addr & (umem->frame_size - 1)) != FAKE_OFFSET)
		return;         /* no worker put that there: what fuzz_adopt.c has made up */
	packet = umem->area + addr;
	if (length >= 54 && length <= umem->frame_size - FAKE_OFFSET) {
		routed_write(&routed, length, 0, packet);
		routed_meta(packet, length, routed.family, routed.egress);
	}
	put_rx(port, (struct xdp_desc){ .addr = addr, .len = length, .options = options });
}

static inline void send_some(struct hostile_port *port, uint32_t n)
{
	while (n-- > 0 && port->kernel[XSKD_TX] != port->port.rings[XSKD_TX].own) {
		const uint64_t addr = their_desc(port, XSKD_TX)->addr;

		*theirs(port, XSKD_TX) = ++port->kernel[XSKD_TX];
		put_completion(port, addr);
	}
}

/* ---- and what a bad one does ----------------------------------------------------------------------- */

static inline uint64_t any_addr(void)
{
	const uint32_t shift = hostile.umem.frame_shift;

	switch (any_below(4)) {
	case 0:         /* a frame, whoever has it */
		return (uint64_t)any_below(hostile.umem.frames) << shift;
	case 1:         /* somewhere in it */
		return ((uint64_t)any_below(hostile.umem.frames) << shift) + any_number(2) % hostile.umem.frame_size;
	case 2:         /* just outside */
		return ((uint64_t)hostile.umem.frames << shift) - 16 + any_byte();
	default:
		return any_number(8);
	}
}

static inline uint32_t any_length(void)
{
	static const uint32_t lengths[] = { 60, 61, 62, 64, 1514, 1518, 13, 14, 0, 1519, 1792, 2048, 4096, 9019,
					    UINT32_MAX };
	const uint32_t which = any_below(SIZE_OF(lengths) + 1);

	return which < SIZE_OF(lengths) ? lengths[which] : (uint32_t)any_number(4);
}

static inline uint32_t any_options(void)
{
	static const uint32_t options[] = { 0, 0, XDP_PKT_CONTD, XDP_PKT_CONTD, 2, 0x80000000u, UINT32_MAX, 0 };

	return options[any_below(8)];
}

/* A chain of so many pieces, of which the last may be missing. */
static inline void deliver_chain(struct hostile_port *port)
{
	const uint32_t pieces = 1 + any_below(24), length = any_length();
	const bool ends = any_below(4);

	for (uint32_t i = 0; i < pieces; i++)
		deliver_one(port, length, i + 1 < pieces || !ends ? XDP_PKT_CONTD : 0);
}

static inline void jump(struct hostile_port *port)
{
	const int name = (int)any_below(XSKD_RINGS);
	uint32_t *index = theirs(port, name);

	switch (any_below(4)) {
	case 0:
		*index += any_byte();
		break;
	case 1:
		*index -= any_byte();
		break;
	case 2:         /* back to the truth */
		*index = port->kernel[name];
		break;
	default:
		*index = (uint32_t)any_number(4);
	}
	if (any_below(2))
		port->kernel[name] = *index;
}

static inline void kernel_acts(void)
{
	struct hostile_port *port = any_port();

	switch (any_below(11)) {
	case 0:
		for (uint32_t n = 1 + any_below(70), length = any_length(); n > 0; n--)
			deliver_one(port, length, 0);
		break;
	case 1:
		deliver_chain(port);
		break;
	case 2:
		send_some(port, any_byte());
		break;
	case 3:
		put_rx(port, (struct xdp_desc){ any_addr(), any_length(), any_options() });
		break;
	case 4:
		put_completion(port, any_addr());
		break;
	case 9:         /* the same nonsense, often */
		for (uint32_t n = any_byte(); n > 0; n--)
			put_rx(port, (struct xdp_desc){ .addr = UINT64_MAX - n, .len = n });
		break;
	case 5:         /* again */
		put_completion(port, port->completed);
		break;
	case 6:
		jump(port);
		break;
	case 7:
		*port->port.rings[any_below(XSKD_RINGS)].flags = any_byte();
		break;
	case 8:         /* never completed */
		port->kernel[XSKD_TX] = *theirs(port, XSKD_TX) = port->port.rings[XSKD_TX].own;
		break;
	default:        /* what lies in a frame is anything, and may look like metadata */
		memset(hostile.umem.area + ((uint64_t)any_below(hostile.umem.frames) << hostile.umem.frame_shift),
		       any_byte(), FAKE_OFFSET);
	}
}

/* ---- its answers ----------------------------------------------------------------------------------- */

static inline int any_errno(void)
{
	static const int errors[] = { 0, 0, EAGAIN, EBUSY, ENOBUFS, ENETDOWN, ENXIO, EINTR, EINVAL, ENOMEM, EIO };

	return errors[any_below(SIZE_OF(errors))];
}

uint64_t xskd_sys_now_ns(void)
{
	return hostile.now_ns += 1000;
}

uint64_t xskd_sys_wall_ns(void)
{
	return hostile.now_ns;
}

int xskd_sys_wakeup_tx(int fd)
{
	if (hostile.calls == WELL)
		send_some(&hostile.ports[fd], 32);
	if (hostile.calls != ACTS)
		return 0;
	kernel_acts();
	return any_errno();
}

int xskd_sys_wakeup_rx(int fd)
{
	(void)fd;
	if (hostile.calls != ACTS)
		return 0;
	kernel_acts();
	return any_errno();
}

int xskd_sys_poll(struct pollfd *fds, uint32_t n, uint64_t timeout_ns)
{
	int ready = 0;

	hostile.now_ns += timeout_ns;
	if (hostile.calls != ACTS)
		return 0;
	kernel_acts();
	if (any_below(8) == 7)
		return -any_errno();
	for (uint32_t i = 0; i < n; i++) {
		fds[i].revents = (short)(any_byte() & 0x3f);
		ready += fds[i].revents != 0;
	}
	return ready;
}

void xskd_sys_usage(uint64_t used[6])
{
	for (int i = 0; i < 6; i++)
		used[i] = hostile.now_ns;
}

#endif
