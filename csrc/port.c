/* SPDX-License-Identifier: Apache-2.0
 *
 * One port: an XSK with its four rings. Receive, transmit, complete, refill, wake up; a batch at a time.
 *
 * This is what a user of the library calls and what the loop (forward.c) is made of. Nothing here blocks,
 * allocates or logs. A frame changes its place only after its owner byte has been checked. The order of the
 * stores is what lets a successor go on exactly where a killed worker stopped; adopt.c says why.
 */
#include <errno.h>

#include "frames.h"
#include "observe.h"
#include "packets.h"
#include "ring.h"
#include "syscalls.h"

/* One wakeup sends at most the kernel's budget per call (32 by default); a burst needs a few. More calls
 * than this without an end mean that someone else fills the ring: the next turn goes on. */
#define WAKEUPS_PER_BURST 8
#define TX_BUDGET 32            /* of a kernel that has no option for it; TX_BATCH_SIZE in net/xdp/xsk.c */

/* RX entries into the caller's hands, at most `wanted`. The packets stay where they are. */
uint32_t xskd_receive(struct xskd_port *port, struct xdp_desc *held, uint32_t wanted)
{
	const struct frames frames = frames_of(port->umem);
	const uint8_t owner = (uint8_t)(OWNER_RX_SIDE | port->index);
	struct xskd_ring *ring = &port->rings[XSKD_RX];
	uint32_t n, kept = 0;
	uint64_t bytes = 0;

	if (port->multi_buffer)
		return packets_receive(port, held, wanted);
	n = ring_peek(ring, wanted);
	if (!frames.shift)
		ring_add_offsets(ring, n);
	intend(port->umem, OPERATION_RECEIVE, port->index, port->index, 0);
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = ring_desc(ring, i);

		bytes += desc->len;
		if (!lies_in(&frames, desc->addr, length_of(desc), owner)) {
			frames_refuse(port, desc);
			continue;
		}
		frames.owner[frame_number(&frames, desc->addr)] = OWNER_HELD;
		held[kept++] = *desc;
	}
	ring_release(ring, n);
	settle(port->umem);
	port->rx_side -= kept;
	port->umem->held += kept;
	if (n)
		count_batch(port->counters->rx_batches, n);
	count(&port->counters->rx_packets, n);
	count(&port->counters->rx_bytes, bytes);
	return kept;
}

/* May this be given to the kernel? It would count an invalid descriptor, and some kernels never complete
 * it, so its frame would be lost: check before, not after. */
static bool transmittable(const struct xskd_port *port, const struct xdp_desc *desc)
{
	const struct frames frames = frames_of(port->umem);

	return lies_in(&frames, desc->addr, length_of(desc), OWNER_HELD) &&
	       sendable(length_of(desc), port->max_length);
}

/* Held frames onto TX, in order, up to the first that may not be sent or finds no room. No consuming ring
 * tells a successor which frames these are, so they are marked until the kernel surely has them. */
uint32_t xskd_transmit(struct xskd_port *port, const struct xdp_desc *held, uint32_t n)
{
	const struct frames frames = frames_of(port->umem);
	struct xskd_ring *ring = &port->rings[XSKD_TX];
	uint32_t room, sent = 0;
	uint64_t bytes = 0;

	if (port->multi_buffer)
		return packets_transmit(port, held, n);
	room = ring_reserve(ring, n);
	intend(port->umem, OPERATION_TRANSMIT, port->index, port->index, ring->own);
	for (; sent < room && transmittable(port, &held[sent]); sent++) {
		*ring_desc(ring, sent) = held[sent];
		frames.owner[frame_number(&frames, held[sent].addr)] = OWNER_SENDING;
		bytes += held[sent].len;
	}
	ring_submit(ring, sent);
	in_this_order();
	for (uint32_t i = 0; i < sent; i++)
		frames.owner[frame_number(&frames, held[i].addr)] = (uint8_t)(OWNER_TX_SIDE | port->index);
	settle(port->umem);
	port->tx_side += sent;
	port->submitted += sent;
	port->umem->held -= sent;
	if (sent)
		count_batch(port->counters->tx_batches, sent);
	count(&port->counters->tx_packets, sent);
	count(&port->counters->tx_frames, sent);
	count(&port->counters->tx_bytes, bytes);
	return sent;
}

/* Drains the completion ring onto the free stack: the kernel stops sending for good once it is full. The
 * address comes back as it was given, so it may point into the frame. */
uint32_t xskd_complete(struct xskd_port *port)
{
	const struct frames frames = frames_of(port->umem);
	const uint8_t owner = (uint8_t)(OWNER_TX_SIDE | port->index);
	struct xskd_ring *ring = &port->rings[XSKD_COMPLETION];
	uint32_t n = ring_peek(ring, ring->size), kept = 0;

	if (n == 0)
		return 0;
	intend(port->umem, OPERATION_COMPLETE, port->index, port->index, 0);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = *ring_addr(ring, i);

		if (!lies_in(&frames, addr, 1, owner)) {
			count(&port->counters->completion_invalid, 1);
			frames_wrong(port, XSKD_COMPLETION);
			continue;
		}
		put_free(port->umem, (uint32_t)frame_number(&frames, addr));
		kept++;
	}
	ring_release(ring, n);
	settle(port->umem);
	port->tx_side -= kept;
	count(&port->counters->tx_completed, kept);
	return n;
}

/* The n frames on top of the free stack into the slots of FILL. */
static inline void refill_slots(const struct xskd_port *port, uint32_t n)
{
	const struct xskd_ring *ring = &port->rings[XSKD_FILL];
	const uint32_t *free = port->umem->free + port->umem->free_count, size = port->umem->frame_size;

	for (uint32_t done = 0, run; done < n; done += run) {
		uint64_t *addr = ring_addr(ring, done);

		run = ring_run(ring, done, n - done);
		for (uint64_t *last = addr + run; addr != last; addr++)
			*addr = (uint64_t)*--free * size;
	}
}

static inline void refill_owners(struct xskd_port *port, uint32_t n)
{
	struct xskd_umem *umem = port->umem;
	const uint8_t owner = (uint8_t)(OWNER_RX_SIDE | port->index);
	const uint32_t *free = umem->free + umem->free_count - n;
	uint8_t *owners = umem->owner;

	for (uint32_t i = 0; i < n; i++)
		owners[free[i]] = owner;
	umem->free_count -= n;
}

/* Fills FILL to the brim, as far as there are free frames. They are free until the kernel surely has them:
 * no consuming ring tells a successor which frames these are, but the slots that were submitted do. */
uint32_t xskd_refill(struct xskd_port *port)
{
	struct xskd_ring *ring = &port->rings[XSKD_FILL];
	uint32_t room = ring_reserve(ring, ring->size);
	uint32_t n = room < port->umem->free_count ? room : port->umem->free_count;

	if (n == 0) {
		if (room == ring->size)
			count(&port->counters->fill_starved, 1);
		return 0;
	}
	intend(port->umem, OPERATION_REFILL, port->index, port->index, ring->own);
	refill_slots(port, n);
	poison(port->umem, ring, n);
	ring_submit(ring, n);
	in_this_order();
	refill_owners(port, n);
	settle(port->umem);
	port->rx_side += n;
	port->refilled += n;
	return n;
}

/* What an errno of a wakeup means. Returns 0 for what passes, else the errno: the port is finished. */
static int __attribute__((noinline, cold)) wakeup_failed(struct xskd_port *port, int error)
{
	uint64_t *errors = port->counters->wakeup_errors;

	switch (error) {
	case EAGAIN:
	case EINTR:
		count(&errors[XSKD_ERROR_EAGAIN], 1);
		return 0;
	case EBUSY:     /* one frame is completed but was not sent: a drop like any other */
		count(&errors[XSKD_ERROR_EBUSY], 1);
		count(&port->counters->drops[XSKD_DROP_TX_REFUSED], 1);
		return 0;
	case ENOBUFS:
	case ENOMEM:    /* of a packet of several frames: the kernel keeps the rest of it for the next call */
		count(&errors[XSKD_ERROR_ENOBUFS], 1);
		return 0;
	case ENETDOWN:
		count(&errors[XSKD_ERROR_ENETDOWN], 1);
		port->down = 1;
		return 0;
	case ENXIO:
		count(&errors[XSKD_ERROR_ENXIO], 1);
		break;
	default:
		count(&errors[XSKD_ERROR_OTHER], 1);
	}
	port->error = error;
	return error;
}

/* Whether a wakeup may have sent some of what was pending although TX still shows all of it: older kernels
 * publish the index in copy mode when they look for more, and at the end of their budget they do not. */
static inline bool unseen_headway(const struct xskd_port *port, int error, uint32_t pending, uint32_t calls)
{
	return port->tx_shows_late && error == EAGAIN && calls * TX_BUDGET < pending;
}

/* Asks the kernel to send, as often as it makes headway: EAGAIN after its budget is the normal way of
 * copy mode, and every EBUSY took one frame off the ring. */
int port_wakeup_tx(struct xskd_port *port, uint32_t pending)
{
	struct xskd_ring *ring = &port->rings[XSKD_TX];
	enum xskd_wakeup reason = port->submitted ? XSKD_WAKEUP_NEW : XSKD_WAKEUP_LEFT;

	port->submitted = 0;
	if (!ring_needs_wakeup(ring)) {
		count(&port->counters->wakeups_skipped[XSKD_DIRECTION_TX], 1);
		return 0;
	}
	for (uint32_t tries = 0; tries < WAKEUPS_PER_BURST; tries++) {
		uint32_t before = pending;
		int error = port->until_timed-- ? xskd_sys_wakeup_tx(port->fd) :
			    observe_wakeup(port, XSKD_DIRECTION_TX, xskd_sys_wakeup_tx);

		count(&port->counters->wakeups[reason], 1);
		reason = XSKD_WAKEUP_AGAIN;
		if (error && wakeup_failed(port, error))
			return error;
		pending = ring_used_by_producer(ring);
		if (pending == 0 || (pending == before && !unseen_headway(port, error, pending, tries + 1)))
			return 0;
	}
	return 0;
}

int xskd_wakeup_tx(struct xskd_port *port)
{
	uint32_t pending = ring_used_by_producer(&port->rings[XSKD_TX]);

	return pending ? port_wakeup_tx(port, pending) : 0;
}

/* A driver that ran dry does not look at FILL again by itself; it sets the flag and waits. It may do so just
 * after we looked, so an idle loop asks again as long as the flag is set, also with nothing new on FILL. */
int xskd_wakeup_rx(struct xskd_port *port)
{
	uint32_t refilled = port->refilled;
	int error;

	port->refilled = 0;
	if (!ring_needs_wakeup(&port->rings[XSKD_FILL])) {
		if (refilled)
			count(&port->counters->wakeups_skipped[XSKD_DIRECTION_RX], 1);
		return 0;
	}
	count(&port->counters->wakeups[refilled ? XSKD_WAKEUP_REFILLED : XSKD_WAKEUP_DRY], 1);
	error = port->until_timed-- ? xskd_sys_wakeup_rx(port->fd) :
		observe_wakeup(port, XSKD_DIRECTION_RX, xskd_sys_wakeup_rx);
	return error ? wakeup_failed(port, error) : 0;
}
