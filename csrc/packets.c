/* SPDX-License-Identifier: Apache-2.0
 *
 * Packets of several descriptors: what is longer than a frame comes as a chain of entries on RX, all but the last
 * with XDP_PKT_CONTD, and leaves as one on TX.
 *
 * A packet goes whole or is dropped whole, whatever cuts it: the end of a burst, a TX ring with too little
 * room, the end of the array, a kill. It must never be split, never be mixed with another, and never hold up
 * the ring: the kernel publishes whole packets only and none of more than XSKD_MAX_FRAGMENTS descriptors, but
 * nothing here depends on it. A packet that has more, or whose end does not come in time, is dropped as
 * XSKD_DROP_FRAGMENTS, and so is what comes of it later; `rx_rest`, in the page that outlives a worker,
 * remembers that.
 *
 * How a packet moves (adopt.c builds on it): all its slots are written first, then the owner bytes, the last
 * frame's first and the first frame's last. With that one store the packet has moved. A worker that is killed
 * before it leaves a packet whose first frame is still on the RX side; a successor gives it the others back.
 *
 * Ports without `multi_buffer` have nothing to do with this: forward.c and port.c are as fast for them as if it
 * did not exist. What moves, moves by entries; what is counted are packets.
 */
#include "packets.h"

#include "capture.h"
#include "observe.h"
#include "route.h"

/* What a batch has done so far. */
struct moved {
	uint32_t packets, sent_packets;
	uint32_t sent;          /* entries */
	uint64_t bytes, sent_bytes;
};

static uint8_t rx_owner(const struct xskd_port *port)
{
	return (uint8_t)(OWNER_RX_SIDE | port->index);
}

static uint64_t frame_of(const struct xskd_port *port, const struct xdp_desc *desc)
{
	const struct frames frames = frames_of(port->umem);

	return frame_number(&frames, desc->addr);
}

/* ---- one packet -------------------------------------------------------------------------------- */

static uint64_t length_at(const struct xskd_ring *ring, uint32_t at, uint32_t n)
{
	uint64_t length = 0;

	for (uint32_t i = 0; i < n; i++)
		length += ring_desc(ring, at + i)->len;
	return length;
}

/* Does each of a packet's descriptors name a frame that the kernel was given, and no two the same? */
static bool sound(const struct xskd_port *in, uint32_t at, uint32_t n)
{
	const struct frames frames = frames_of(in->umem);
	const struct xskd_ring *rx = &in->rings[XSKD_RX];

	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = ring_desc(rx, at + i);

		if (!lies_in(&frames, desc->addr, part_of(desc), rx_owner(in)))
			return false;
		for (uint32_t j = 0; j < i; j++)
			if (frame_of(in, ring_desc(rx, at + j)) == frame_of(in, desc))
				return false;
	}
	return true;
}

/* An RX frame goes back to the free stack, or where nobody uses it again if its descriptor is wrong. */
static void give_up_frame(struct xskd_port *in, const struct xdp_desc *desc)
{
	const struct frames frames = frames_of(in->umem);

	if (!lies_in(&frames, desc->addr, 1, rx_owner(in))) {
		frames_wrong(in, XSKD_RX);
		return;
	}
	if (lies_in(&frames, desc->addr, part_of(desc), rx_owner(in))) {
		route_forget(in->umem->area + desc->addr, desc->addr - frame_of(in, desc) * frames.size);
		put_free(in->umem, (uint32_t)frame_of(in, desc));
		in->rx_side--;
	} else {
		frames_wrong(in, XSKD_RX);
		frames_quarantine(in, desc);
	}
	in_this_order();
}

static void drop_packet(struct xskd_port *in, uint32_t at, uint32_t n, enum xskd_drop reason)
{
	count(&in->counters->drops[reason], 1);
	while (n-- > 0)
		give_up_frame(in, ring_desc(&in->rings[XSKD_RX], at + n));
}

/* Why the packet cannot leave by a port; XSKD_DROPS: it can. What an action changes is in its first frame. */
static enum xskd_drop objection(const struct xskd_port *in, uint32_t at, uint32_t n, uint64_t length,
				uint32_t max_length)
{
	if (!sound(in, at, n))
		return XSKD_DROP_INVALID;
	if (ring_desc(&in->rings[XSKD_RX], at)->len < ETH_HLEN)
		return XSKD_DROP_UNDERSIZE;
	return length <= max_length ? XSKD_DROPS : XSKD_DROP_OVERSIZE;
}

/* From RX to TX, in the order that the head of this file tells. */
static void move(const struct xskd_forward *forward, struct xskd_port *in, struct xskd_port *out, uint32_t at,
		 uint32_t to, uint32_t n)
{
	const struct xskd_ring *rx = &in->rings[XSKD_RX], *tx = &out->rings[XSKD_TX];
	const uint8_t after = (uint8_t)(OWNER_TX_SIDE | out->index);
	uint8_t *first = in->umem->area + ring_desc(rx, at)->addr;

	for (uint32_t i = 0; i < n; i++)
		*ring_desc(tx, to + i) = *ring_desc(rx, at + i);
	in_this_order();
	for (uint32_t i = n; i-- > 0;) {
		in->umem->owner[ring_desc(rx, at + i)->addr >> in->umem->frame_shift] = after;
		in_this_order();
	}
	if (forward->action == XSKD_SWAP_MACS)
		swap_macs(first);
	if (forward->action == XSKD_ROUTE) {
		route_mend(first);
		route_forget(first, ROUTE_META);
	}
}

/* ---- what stands at the front of RX ------------------------------------------------------------- */

/* No packet that may be: the rest of one that was dropped, more descriptors than may be or than `room`, a TX
 * ring, ever has; or RX is full of it, so that its end cannot come. `n`: entries there, at least 1. */
static bool hopeless(const struct xskd_port *in, uint32_t n, uint32_t room)
{
	const struct xskd_ring *rx = &in->rings[XSKD_RX];
	const uint32_t first = packet_at(rx, 0, n);

	if (in->counters->rx_rest || first > room)
		return true;
	return first == 0 && (n >= XSKD_MAX_FRAGMENTS || n >= rx->size);
}

/* Up to the packet's end, or as far as it is there. Entry by entry and from the front, for its end may not be
 * among them. Cut off in here, the last entry that was worked off says what the next one is (adopt.c); after
 * that it is `rx_rest`. Returns the entries. */
static uint32_t __attribute__((cold)) discard(struct xskd_port *in, uint32_t n)
{
	struct xskd_ring *rx = &in->rings[XSKD_RX];
	const bool begins = !in->counters->rx_rest;
	uint32_t taken = 0;
	bool rest = true;

	count(&in->counters->drops[XSKD_DROP_FRAGMENTS], begins);
	count(&in->counters->rx_packets, begins);
	intend(in->umem, OPERATION_RECEIVE, in->index, in->index, 0);
	for (; rest && taken < n; taken++) {
		rest = continues(ring_desc(rx, taken));
		count(&in->counters->rx_bytes, ring_desc(rx, taken)->len);
		give_up_frame(in, ring_desc(rx, taken));
	}
	set(&in->counters->rx_rest, rest);
	in_this_order();
	ring_release(rx, taken);
	settle(in->umem);
	in->unfinished_since_ns = 0;
	if (begins)
		count_batch(in->counters->rx_batches, 1);
	return taken;
}

/* The end of the packet at the front is not there yet. */
static uint32_t __attribute__((cold)) unfinished(const struct xskd_forward *forward, struct xskd_port *in,
						 uint32_t n)
{
	if (in->unfinished_since_ns == 0)
		in->unfinished_since_ns = forward->now_ns;
	return forward->now_ns - in->unfinished_since_ns < DEADLINE_NS ? 0 : discard(in, n);
}

/* Entries of whole packets at the front, of n, that find room for `room` entries. */
static uint32_t whole_packets(const struct xskd_ring *rx, uint32_t n, uint32_t room)
{
	uint32_t ready = 0, next;

	while ((next = packet_at(rx, ready, n - ready)) && ready + next <= room)
		ready += next;
	return ready;
}

/* ---- between ports ------------------------------------------------------------------------------ */

/* The next n entries of RX, which are whole packets, for one reason as far as they are good. */
static uint32_t __attribute__((cold)) drop_packets(const struct xskd_forward *forward, struct xskd_port *in,
						   uint32_t n, enum xskd_drop reason)
{
	const struct xskd_ring *rx = &in->rings[XSKD_RX];
	uint32_t packets = 0, next;

	if (forward->capture)
		xskd_capture_burst(forward->capture, in, XSKD_RX, 0, n);
	count(&in->counters->rx_bytes, length_at(rx, 0, n));
	intend(in->umem, OPERATION_RECEIVE, in->index, in->index, 0);
	for (uint32_t at = 0; at < n; at += next, packets++) {
		next = packet_at(rx, at, n - at);
		drop_packet(in, at, next, sound(in, at, next) ? reason : XSKD_DROP_INVALID);
	}
	ring_release(&in->rings[XSKD_RX], n);
	settle(in->umem);
	count_burst(in->counters->rx_batches, packets);
	count(&in->counters->rx_packets, packets);
	return n;
}

/* TX has too little room for the packet at the front: as blocked() in forward.c. */
static uint32_t __attribute__((cold)) blocked(const struct xskd_forward *forward, struct xskd_port *in,
					      struct xskd_port *out, uint32_t n)
{
	observe(out, XSKD_TX, ring_used_by_producer(&out->rings[XSKD_TX]));
	if (forward->action != XSKD_ROUTE)
		count(&in->counters->tx_blocked, 1);
	if (out->blocked_since_ns == 0)
		out->blocked_since_ns = forward->now_ns;
	if (forward->now_ns - out->blocked_since_ns < DEADLINE_NS)
		return 0;
	return drop_packets(forward, in, whole_packets(&in->rings[XSKD_RX], n, n), XSKD_DROP_TX_FULL);
}

/* The first `ready` entries of RX, which are whole packets and have room on TX. */
static struct moved forward_packets(const struct xskd_forward *forward, struct xskd_port *in,
				    struct xskd_port *out, uint32_t ready)
{
	const struct xskd_ring *rx = &in->rings[XSKD_RX];
	struct moved moved = { 0 };
	uint32_t n;

	for (uint32_t at = 0; at < ready; at += n, moved.packets++) {
		uint64_t length;
		enum xskd_drop reason;

		n = packet_at(rx, at, ready - at);
		length = length_at(rx, at, n);
		moved.bytes += length;
		reason = objection(in, at, n, length, out->max_length);
		if (reason != XSKD_DROPS) {
			drop_packet(in, at, n, reason);
			continue;
		}
		move(forward, in, out, at, moved.sent, n);
		moved.sent += n;
		moved.sent_packets++;
		moved.sent_bytes += length;
	}
	return moved;
}

static void account(struct xskd_port *in, struct xskd_port *out, const struct moved *moved)
{
	in->rx_side -= moved->sent;
	out->tx_side += moved->sent;
	out->submitted += moved->sent_packets;
	count_burst(in->counters->rx_batches, moved->packets);
	if (moved->sent_packets)
		count_burst(out->counters->tx_batches, moved->sent_packets);
	count(&in->counters->rx_packets, moved->packets);
	count(&in->counters->rx_bytes, moved->bytes);
	count(&out->counters->tx_packets, moved->sent_packets);
	count(&out->counters->tx_frames, moved->sent);
	count(&out->counters->tx_bytes, moved->sent_bytes);
}

static void batch(const struct xskd_forward *forward, struct xskd_port *in, struct xskd_port *out, uint32_t ready)
{
	struct moved moved;

	if (forward->capture)
		xskd_capture_burst(forward->capture, in, XSKD_RX, 0, ready);
	observe_burst(in, forward->looked_ns);
	intend(in->umem, OPERATION_FORWARD, in->index, out->index, out->rings[XSKD_TX].own);
	moved = forward_packets(forward, in, out, ready);
	ring_submit(&out->rings[XSKD_TX], moved.sent);
	ring_release(&in->rings[XSKD_RX], ready);
	settle(in->umem);
	account(in, out, &moved);
	if (forward->capture)
		xskd_capture_burst(forward->capture, out, XSKD_TX, -moved.sent, moved.sent);
}

/* Does a whole packet stand at the front of n entries? If not, `taken` are the entries that were discarded, 0 as
 * long as its end may still come. */
static bool begins_well(const struct xskd_forward *forward, struct xskd_port *in, uint32_t n, uint32_t room,
			uint32_t *taken)
{
	if (hopeless(in, n, room)) {
		*taken = discard(in, n);
		return false;
	}
	if (packet_at(&in->rings[XSKD_RX], 0, n) == 0) {
		*taken = unfinished(forward, in, n);
		return false;
	}
	in->unfinished_since_ns = 0;
	return true;
}

uint32_t packets_burst(const struct xskd_forward *forward, struct xskd_port *in, struct xskd_port *out)
{
	struct xskd_ring *rx = &in->rings[XSKD_RX], *tx = &out->rings[XSKD_TX];
	const uint32_t waiting = ring_used_by_consumer(rx), unsent = ring_used_by_producer(tx);
	const uint32_t n = ring_given(rx, waiting, XSKD_BURST), room = ring_room(tx, unsent, XSKD_BURST);
	uint32_t ready;

	observe(in, XSKD_RX, waiting);
	observe(out, XSKD_TX, unsent);
	if (n && !begins_well(forward, in, n, tx->size, &ready))
		return ready;
	ready = whole_packets(rx, n, room);
	if (n && ready == 0)
		return blocked(forward, in, out, n);
	if (room)
		out->blocked_since_ns = 0;
	if (n == 0)
		return 0;
	batch(forward, in, out, ready);
	observe(out, XSKD_TX, ring_used_by_producer(tx));
	return ready;
}

/* ---- routing: the same, for route_burst() in forward.c ------------------------------------------- */

/* By which port the packet leaves that is the n entries there. Headers and metadata are with its first frame. */
static uint32_t egress_of(const struct xskd_forward *forward, const struct xskd_port *in, uint32_t at, uint32_t n)
{
	const struct frames frames = frames_of(in->umem);
	const struct xskd_ring *rx = &in->rings[XSKD_RX];
	const struct xdp_desc *first = ring_desc(rx, at);

	if (first->addr >> frames.shift >= frames.count || !fits(&frames, first->addr, part_of(first)) ||
	    (n > 1 && first->len < ROUTE_LEAST6))
		return NOWHERE;
	return route_egress(in->umem->area + first->addr, first->addr & frames.mask,
			    (uint32_t)length_at(rx, at, n), forward->port_count, NOWHERE);
}

uint32_t packets_look(const struct xskd_forward *forward, struct xskd_port *in, uint32_t n, uint8_t *egress,
		      uint32_t *taken)
{
	const struct xskd_ring *rx = &in->rings[XSKD_RX];
	uint32_t ready, next;

	if (!begins_well(forward, in, n, UINT32_MAX, taken))
		return 0;
	ready = whole_packets(rx, n, n);
	for (uint32_t at = 0; at < ready; at += next) {
		next = packet_at(rx, at, ready - at);
		memset(egress + at, (int)egress_of(forward, in, at, next), next);
	}
	return ready;
}

uint32_t packets_run(const struct xskd_forward *forward, struct xskd_port *in, struct xskd_port *out, uint32_t n)
{
	uint32_t ready;

	if (!out)
		return drop_packets(forward, in, n, XSKD_DROP_NO_METADATA);
	ready = whole_packets(&in->rings[XSKD_RX], n, ring_reserve(&out->rings[XSKD_TX], n));
	if (ready == 0)
		return blocked(forward, in, out, n);
	batch(forward, in, out, ready);
	observe(out, XSKD_TX, ring_used_by_producer(&out->rings[XSKD_TX]));
	return ready;
}

/* ---- for whoever calls receive and transmit ------------------------------------------------------ */

/* RX entries into the caller's hands: as a packet moves to TX, so its first frame is the last to change. */
static void hold(const struct xskd_port *port, uint32_t at, uint32_t n, struct xdp_desc *held)
{
	while (n-- > 0) {
		held[n] = *ring_desc(&port->rings[XSKD_RX], at + n);
		port->umem->owner[frame_of(port, &held[n])] = OWNER_HELD;
		in_this_order();
	}
}

static uint32_t peek(const struct xskd_port *port)
{
	const struct xskd_ring *rx = &port->rings[XSKD_RX];
	const uint32_t n = ring_peek(rx, rx->size);

	if (!port->umem->frame_shift)
		ring_add_offsets(rx, n);
	return n;
}

uint32_t packets_receive(struct xskd_port *port, struct xdp_desc *held, uint32_t wanted)
{
	struct xskd_ring *rx = &port->rings[XSKD_RX];
	uint32_t n = peek(port), ready, next, kept = 0, packets = 0;

	for (; n && hopeless(port, n, UINT32_MAX); n = peek(port))
		discard(port, n);
	ready = whole_packets(rx, n, wanted);
	count(&port->counters->rx_bytes, length_at(rx, 0, ready));
	intend(port->umem, OPERATION_RECEIVE, port->index, port->index, 0);
	for (uint32_t at = 0; at < ready; at += next, packets++) {
		next = packet_at(rx, at, ready - at);
		if (!sound(port, at, next)) {
			drop_packet(port, at, next, XSKD_DROP_INVALID);
			continue;
		}
		hold(port, at, next, held + kept);
		kept += next;
	}
	ring_release(rx, ready);
	settle(port->umem);
	port->rx_side -= kept;
	port->umem->held += kept;
	if (packets)
		count_batch(port->counters->rx_batches, packets);
	count(&port->counters->rx_packets, packets);
	return kept;
}

/* Descriptors of the packet at the front of `held`; 0: there is no whole one that may have so many. */
static uint32_t packet_of(const struct xdp_desc *held, uint32_t n)
{
	for (uint32_t i = 0; i < at_most(n, XSKD_MAX_FRAGMENTS); i++)
		if (!continues(&held[i]))
			return i + 1;
	return 0;
}

/* Marks the frames of a packet as xskd_transmit does; all of them, or, if the packet may not be given to the
 * kernel, none. Returns its length in bytes, or 0. */
static uint64_t mark(const struct xskd_port *port, const struct xdp_desc *held, uint32_t n)
{
	const struct frames frames = frames_of(port->umem);
	uint64_t length = 0;
	uint32_t i;

	for (i = 0; i < n; i++) {
		if (!lies_in(&frames, held[i].addr, part_of(&held[i]), OWNER_HELD))
			break;
		frames.owner[frame_of(port, &held[i])] = OWNER_SENDING;
		length += held[i].len;
	}
	if (i == n && n && held->len >= ETH_HLEN && sendable(length, port->max_length))
		return length;
	while (i-- > 0)
		frames.owner[frame_of(port, &held[i])] = OWNER_HELD;
	return 0;
}

uint32_t packets_transmit(struct xskd_port *port, const struct xdp_desc *held, uint32_t n)
{
	struct xskd_ring *ring = &port->rings[XSKD_TX];
	const uint32_t room = ring_reserve(ring, n);
	uint32_t sent = 0, packets = 0, next;
	uint64_t bytes = 0, length;

	intend(port->umem, OPERATION_TRANSMIT, port->index, port->index, ring->own);
	while ((next = packet_of(held + sent, n - sent)) && next <= room - sent &&
	       (length = mark(port, held + sent, next))) {
		for (uint32_t i = 0; i < next; i++)
			*ring_desc(ring, sent + i) = held[sent + i];
		sent += next;
		bytes += length;
		packets++;
	}
	ring_submit(ring, sent);
	in_this_order();
	for (uint32_t i = 0; i < sent; i++)
		port->umem->owner[frame_of(port, &held[i])] = (uint8_t)(OWNER_TX_SIDE | port->index);
	settle(port->umem);
	port->tx_side += sent;
	port->submitted += packets;
	port->umem->held -= sent;
	if (packets)
		count_batch(port->counters->tx_batches, packets);
	count(&port->counters->tx_packets, packets);
	count(&port->counters->tx_frames, sent);
	count(&port->counters->tx_bytes, bytes);
	return sent;
}
