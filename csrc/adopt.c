/* SPDX-License-Identifier: Apache-2.0
 *
 * Adoption: a successor takes over the live rings of a worker that has ended, also of one that was killed
 * between any two instructions, and no packet on the wire notices.
 *
 * What outlives a worker: the UMEM, the rings, the owner bytes, the counters and the intent. What dies with
 * it: the free stack and every count. This file makes the second from the first.
 *
 * It must never let a frame be used that the kernel, or a ring, may still have, and never forget one: a leak
 * is as wrong, only slower. It must never infer from FILL's consumer index, which the kernel publishes late,
 * what became of a frame; and it must never stop half-way so that it could not be done again: a successor
 * may be killed in here as well.
 *
 * Why it is exact
 *   - A worker is one thread, so at most one batch was under way, and the intent names it. All other frames
 *     are where their owner bytes say: only the worker writes those, and outside of a batch they are right.
 *   - A batch moves from a consuming ring (RX, completion) to a producing one (TX, FILL), or has only one of
 *     them. Its order: intent, slots and owner bytes entry by entry, submit, release, intent 0. Submit and
 *     release are one store each: the kernel sees all of a batch or nothing.
 *   - The entries that were worked off are those at the front of the consuming ring whose frames have left
 *     its side, for nothing else takes a frame from there; they are released here. Whether they were
 *     submitted is read off the producing ring's index: it still is the intent's, or has moved on. If they
 *     were not, the frames that had reached the other side are in nobody's hands. They are those in the slots
 *     from the intent's index on, for a slot is written before the owner byte; they become free.
 *   - A packet of several descriptors moves with its first frame, whose owner byte is the last to change
 *     (packets.c). One that was cut off before that has not moved, and gets its other frames back here; so
 *     what is released are whole packets. Only what is dropped as no packet goes entry by entry; `rx_rest` says
 *     that its rest is to follow.
 *   - A batch without a consuming ring (refill, transmit) changes its owner bytes after submit; if that has
 *     happened, the slots tell which frames they are, and it is completed here, else nothing has happened.
 *   - Held frames were in the worker's own hands: free.
 * Each step leaves a state in which the same steps find the same frames, and the intent goes last.
 *
 * The kernel does not stop meanwhile. It only adds to RX and completion and takes from FILL and TX, and what
 * it has taken is still in the slots: no step looks at anything that it changes.
 *
 * What contradicts all this (a kernel or a page that went wrong) is quarantined: never used again.
 *
 * A batch between ports is counted when all of it has moved, so for one whose intent still stands that is done
 * here. What it cost is counted as abandoned: every packet that has left RX has left by TX or is in `drops`, but
 * for the one that was being dropped at that very instruction. If the worker got to its counters and no further,
 * up to one batch is missing in those of packets and bytes.
 */
#include <errno.h>

#include "frames.h"
#include "packets.h"
#include "ring.h"
#include "route.h"

#define NO_FRAME UINT32_MAX     /* what an address outside the UMEM names */
#define NO_RING XSKD_RINGS

/* What each operation moves from and to; `before`: the owner of its frames if it has no consuming ring. */
static const struct kind {
	enum xskd_ring_name consuming, producing;
	uint8_t before;
} kinds[OPERATIONS] = {
	[OPERATION_NONE] = { NO_RING, NO_RING, 0 },
	[OPERATION_FORWARD] = { XSKD_RX, XSKD_TX, 0 },
	[OPERATION_RECYCLE] = { XSKD_COMPLETION, XSKD_FILL, 0 },
	[OPERATION_REFILL] = { NO_RING, XSKD_FILL, OWNER_FREE },
	[OPERATION_TRANSMIT] = { NO_RING, XSKD_TX, OWNER_SENDING },
	[OPERATION_RECEIVE] = { XSKD_RX, NO_RING, 0 },
	[OPERATION_COMPLETE] = { XSKD_COMPLETION, NO_RING, 0 },
};

/* The batch that was under way. */
struct batch {
	enum operation operation;
	const struct kind *kind;
	struct xskd_port *from, *to;
	uint32_t index;         /* where it begins on the producing ring */
	uint32_t submitted;     /* entries of it there: all, or 0 */
};

/* ---- looking ----------------------------------------------------------------------------------- */

static uint8_t owner_on(const struct xskd_port *port, enum xskd_ring_name name)
{
	return (uint8_t)((name == XSKD_FILL || name == XSKD_RX ? OWNER_RX_SIDE : OWNER_TX_SIDE) | port->index);
}

/* The frame that a ring's slot names. */
static uint32_t frame_at(const struct xskd_port *port, enum xskd_ring_name name, uint32_t index)
{
	const struct xskd_ring *ring = &port->rings[name];
	uint32_t slot = index & ring_mask(ring);
	uint64_t frame;

	if (name == XSKD_RX || name == XSKD_TX)
		frame = ((const struct xdp_desc *)ring->entries)[slot].addr >> port->umem->frame_shift;
	else
		frame = ((const uint64_t *)ring->entries)[slot] >> port->umem->frame_shift;
	return frame < port->umem->frames ? (uint32_t)frame : NO_FRAME;
}

/* A frame that does not exist is one that nobody may use. */
static uint8_t owner_of(const struct xskd_umem *umem, uint32_t frame)
{
	return frame == NO_FRAME ? OWNER_QUARANTINED : umem->owner[frame];
}

static void quarantine(struct xskd_umem *umem, uint32_t frame, struct xskd_adoption *report)
{
	if (owner_of(umem, frame) == OWNER_QUARANTINED)
		return;
	umem->owner[frame] = OWNER_QUARANTINED;
	report->quarantined++;
}

/* Is the descriptor in a slot of RX or TX the last of its packet? */
static bool ends_packet(const struct xskd_port *port, enum xskd_ring_name name, uint32_t index)
{
	const struct xskd_ring *ring = &port->rings[name];

	return !port->multi_buffer || !continues(ring_desc(ring, index - ring->own));
}

/* ---- may all this be trusted? ------------------------------------------------------------------- */

static bool ports_fit(const struct xskd_forward *forward)
{
	if (forward->port_count == 0 || forward->port_count > XSKD_MAX_PORTS)
		return false;
	for (uint32_t i = 0; i < forward->port_count; i++)
		if (forward->ports[i]->index != i || forward->ports[i]->umem != forward->ports[0]->umem)
			return false;
	return true;
}

/* Our index is the one that we write: nobody else has moved it since. */
static bool seed_rings(struct xskd_port *port)
{
	for (int name = 0; name < XSKD_RINGS; name++) {
		struct xskd_ring *ring = &port->rings[name];
		bool produces = name == XSKD_FILL || name == XSKD_TX;

		ring->own = __atomic_load_n(produces ? ring->producer : ring->consumer, __ATOMIC_RELAXED);
		if ((produces ? ring_used_by_producer(ring) : ring_used_by_consumer(ring)) > ring->size)
			return false;
	}
	return true;
}

static bool read_intent(const struct xskd_forward *forward, struct batch *batch)
{
	const uint64_t intent = *forward->ports[0]->umem->intent;
	const uint32_t operation = (uint8_t)intent, from = (uint8_t)(intent >> INTENT_FROM);
	const uint32_t to = (uint16_t)(intent >> INTENT_TO);

	if (operation >= OPERATIONS || from >= forward->port_count || to >= forward->port_count)
		return false;
	if (operation == OPERATION_NONE && intent)
		return false;
	*batch = (struct batch){
		.operation = operation, .kind = &kinds[operation], .from = forward->ports[from],
		.to = forward->ports[to], .index = (uint32_t)(intent >> INTENT_INDEX),
	};
	if (batch->kind->producing == NO_RING)
		return true;
	batch->submitted = batch->to->rings[batch->kind->producing].own - batch->index;
	return batch->submitted <= batch->to->rings[batch->kind->producing].size;
}

/* ---- the batch that was under way --------------------------------------------------------------- */

/* Refill and transmit: what was submitted is the kernel's, whatever the owner bytes had come to say. */
static void complete_batch(const struct batch *batch, struct xskd_adoption *report)
{
	struct xskd_umem *umem = batch->to->umem;
	const uint8_t before = batch->kind->before, after = owner_on(batch->to, batch->kind->producing);

	for (uint32_t i = 0; i < batch->submitted; i++) {
		uint32_t frame = frame_at(batch->to, batch->kind->producing, batch->index + i);
		uint8_t owner = owner_of(umem, frame);

		if (owner == before)
			umem->owner[frame] = after;
		else if (owner != after)
			quarantine(umem, frame, report);
	}
}

/* A packet that is lost here may not have got to where it forgets its way (route.h): before its frame is free,
 * or nobody would find it again. */
static void forget_packet(const struct xskd_port *port, uint32_t index)
{
	const struct xskd_ring *ring = &port->rings[XSKD_TX];
	const uint64_t addr = ((const struct xdp_desc *)ring->entries)[index & ring_mask(ring)].addr;

	route_forget(port->umem->area + addr, addr & (port->umem->frame_size - 1));
}

/* The first n slots were written and never submitted. Last to first: if this is cut off, what is left are
 * still the first ones. */
static void undo_batch(const struct batch *batch, uint32_t n, struct xskd_adoption *report)
{
	struct xskd_umem *umem = batch->to->umem;
	const uint8_t after = owner_on(batch->to, batch->kind->producing);

	while (n-- > 0) {
		uint32_t frame = frame_at(batch->to, batch->kind->producing, batch->index + n);

		if (owner_of(umem, frame) != after)
			continue;
		if (batch->operation != OPERATION_FORWARD) {
			umem->owner[frame] = OWNER_FREE;
			report->freed++;
			continue;
		}
		forget_packet(batch->to, batch->index + n);
		umem->owner[frame] = OWNER_FREE;
		if (ends_packet(batch->to, XSKD_TX, batch->index + n)) {
			count(&batch->from->counters->drops[XSKD_DROP_ABANDONED], 1);
			report->undone++;
		}
	}
}

/* What the worker would have counted next: packets, frames and bytes of a batch between ports. */
static void count_moved(const struct batch *batch, uint32_t taken)
{
	const struct xskd_ring *rx = &batch->from->rings[XSKD_RX], *tx = &batch->to->rings[XSKD_TX];
	struct xskd_port_counters *in = batch->from->counters, *out = batch->to->counters;

	for (uint32_t i = 0; i < taken; i++) {
		count(&in->rx_packets, ends_packet(batch->from, XSKD_RX, rx->own + i));
		count(&in->rx_bytes, ring_desc(rx, i)->len);
	}
	for (uint32_t i = 0; i < batch->submitted; i++) {
		count(&out->tx_packets, ends_packet(batch->to, XSKD_TX, batch->index + i));
		count(&out->tx_bytes, ring_desc(tx, batch->index + i - tx->own)->len);
	}
	count(&out->tx_frames, batch->submitted);
}

/* The packet at the front of RX, behind `moved` entries that did, has not moved: the frames of it that had
 * changed are as they were. What was submitted is the kernel's in any case. */
static void give_back(const struct batch *batch, uint32_t front, uint32_t moved)
{
	const struct kind *kind = batch->kind;
	const struct xskd_ring *ring = &batch->from->rings[kind->consuming];
	const uint32_t n = packet_at(ring, front, ring_peek(ring, ring->size) - front);

	for (uint32_t i = 1; i < n; i++) {
		uint32_t frame = frame_at(batch->from, kind->consuming, ring->own + front + i);
		uint8_t owner = owner_of(batch->from->umem, frame);
		bool in_slot = kind->producing != NO_RING && owner == owner_on(batch->to, kind->producing) &&
			       frame_at(batch->to, kind->producing, batch->index + moved + i) == frame;

		if (owner == OWNER_FREE || owner == OWNER_HELD || in_slot)
			batch->from->umem->owner[frame] = owner_on(batch->from, kind->consuming);
	}
}

/* How many entries at the front of the consuming ring were worked off. `moved`: how many of those are in the
 * slots of the producing ring. An entry that says so and is not there names some other frame of that side:
 * the kernel has given it twice. */
static uint32_t worked_off(const struct batch *batch, uint32_t *moved, struct xskd_adoption *report)
{
	const struct kind *kind = batch->kind;
	const struct xskd_ring *ring = &batch->from->rings[kind->consuming];
	const uint8_t before = owner_on(batch->from, kind->consuming);
	uint32_t n = ring_peek(ring, ring->size), i;

	for (i = 0; i < n; i++) {
		uint32_t frame = frame_at(batch->from, kind->consuming, ring->own + i);
		uint8_t owner = owner_of(batch->from->umem, frame);

		if (owner == before)
			break;
		if (kind->producing == NO_RING || owner != owner_on(batch->to, kind->producing))
			continue;
		if (frame_at(batch->to, kind->producing, batch->index + *moved) == frame)
			++*moved;
		else
			quarantine(batch->from->umem, frame, report);
	}
	if (kind->consuming == XSKD_RX && batch->from->multi_buffer && !batch->submitted)
		give_back(batch, i, *moved);
	return i;
}

static void finish_batch(const struct batch *batch, struct xskd_adoption *report)
{
	uint32_t moved = 0;

	if (batch->operation == OPERATION_NONE)
		return;
	if (batch->kind->consuming == NO_RING) {
		complete_batch(batch, report);
		return;
	}
	report->skipped = worked_off(batch, &moved, report);
	if (!batch->submitted)
		undo_batch(batch, moved, report);
	if (batch->operation == OPERATION_FORWARD)
		count_moved(batch, report->skipped);
	if (batch->kind->consuming == XSKD_RX && report->skipped)
		set(&batch->from->counters->rx_rest,
		    !ends_packet(batch->from, XSKD_RX, batch->from->rings[XSKD_RX].own + report->skipped - 1));
	in_this_order();
	ring_release(&batch->from->rings[batch->kind->consuming], report->skipped);
}

/* ---- everything else ---------------------------------------------------------------------------- */

/* Each entry names a frame of this side, and no two the same. `seen` has a number per frame. Returns how many
 * packets end there. */
static uint32_t check_ring(const struct xskd_port *port, enum xskd_ring_name name, uint32_t *seen,
			   struct xskd_adoption *report)
{
	const struct xskd_ring *ring = &port->rings[name];
	const bool ours = name == XSKD_TX;      /* our index is its end, not its beginning */
	uint32_t n = ours ? ring->size - ring_reserve(ring, ring->size) : ring_peek(ring, ring->size);
	uint32_t packets = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t index = ring->own + i - (ours ? n : 0), frame = frame_at(port, name, index);

		packets += name != XSKD_COMPLETION && ends_packet(port, name, index);
		if (owner_of(port->umem, frame) != owner_on(port, name) || seen[frame])
			quarantine(port->umem, frame, report);
		else
			seen[frame] = 1;
	}
	return packets;
}

/* Completion before TX: what the kernel sends in between is then on neither list, not on both. */
static void check_rings(const struct xskd_forward *forward, struct xskd_adoption *report)
{
	const struct xskd_umem *umem = forward->ports[0]->umem;
	uint32_t *seen = umem->free;    /* no free stack yet */

	for (uint32_t frame = 0; frame < umem->frames; frame++)
		seen[frame] = 0;
	for (uint32_t i = 0; i < forward->port_count; i++) {
		report->waiting += check_ring(forward->ports[i], XSKD_RX, seen, report);
		check_ring(forward->ports[i], XSKD_COMPLETION, seen, report);
		report->unsent += check_ring(forward->ports[i], XSKD_TX, seen, report);
	}
}

/* Counts one frame where its owner byte says it is; what was in the worker's hands becomes free. */
static void take_stock_of(const struct xskd_forward *forward, uint32_t frame, struct xskd_adoption *report)
{
	struct xskd_umem *umem = forward->ports[0]->umem;
	const uint8_t owner = umem->owner[frame], side = owner & (uint8_t)~OWNER_PORT;
	const uint32_t port = owner & OWNER_PORT;

	if (owner == OWNER_HELD)
		report->freed++;
	if (owner == OWNER_SENDING)
		report->undone++;
	if (owner == OWNER_FREE || owner == (OWNER_FREE | OWNER_SEEN) || owner == OWNER_HELD ||
	    owner == OWNER_SENDING) {
		put_free(umem, frame);
	} else if (side == OWNER_RX_SIDE && port < forward->port_count) {
		forward->ports[port]->rx_side++;
	} else if (side == OWNER_TX_SIDE && port < forward->port_count) {
		forward->ports[port]->tx_side++;
	} else {
		quarantine(umem, frame, report);
		umem->quarantined++;
	}
}

/* All that a worker keeps for itself. It may have posted frames without asking the kernel to look at them,
 * so the first turn asks. */
static void take_stock(struct xskd_forward *forward, struct xskd_adoption *report)
{
	struct xskd_umem *umem = forward->ports[0]->umem;

	umem->free_count = umem->held = umem->quarantined = 0;
	for (uint32_t i = 0; i < forward->port_count; i++) {
		struct xskd_port *port = forward->ports[i];

		port->rx_side = port->tx_side = 0;
		port->refilled = ring_used_by_producer(&port->rings[XSKD_FILL]);
		port->blocked_since_ns = port->unfinished_since_ns = 0;
		port->wrong = 0;
		port->error = 0;
	}
	for (uint32_t frame = umem->frames; frame-- > 0;)
		take_stock_of(forward, frame, report);
}

int xskd_forward_adopt(struct xskd_forward *forward, struct xskd_adoption *report)
{
	struct batch batch;

	*report = (struct xskd_adoption){ 0 };
	if (!ports_fit(forward))
		return EINVAL;
	for (uint32_t i = 0; i < forward->port_count; i++)
		if (!seed_rings(forward->ports[i]))
			return EBADMSG;
	if (!read_intent(forward, &batch))
		return EBADMSG;
	finish_batch(&batch, report);
	check_rings(forward, report);
	take_stock(forward, report);
	settle(forward->ports[0]->umem);
	set(&forward->counters->yielded, 0);
	return 0;
}

void xskd_yield(struct xskd_counters *counters)
{
	__atomic_store_n(&counters->yielded, 1, __ATOMIC_RELEASE);
}

int xskd_yielded(const struct xskd_counters *counters)
{
	return (int)__atomic_load_n(&counters->yielded, __ATOMIC_ACQUIRE);
}
