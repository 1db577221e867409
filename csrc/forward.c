/* SPDX-License-Identifier: Apache-2.0
 *
 * The hot loop: receive, act, transmit, complete, refill, wake up.
 *
 * This file and bpf/xdp_prog.bpf.c are the whole way of a packet. It never parses configuration, never
 * allocates, never logs, never blocks, and knows no names; Python hands it mapped rings and calls
 * xskd_forward_run() again and again with a time bound. Its system calls are those in syscalls.h.
 *
 * One turn takes at most XSKD_BURST packets from each port and ends every burst by telling the kernel,
 * so one packet in is one packet out at once. A packet that is not forwarded is counted under exactly one
 * reason, and its frame goes back to the free stack.
 */
#define _GNU_SOURCE
#include "forward.h"

#include <errno.h>
#include <string.h>

#include "capture.h"
#include "frames.h"
#include "observe.h"
#include "packets.h"
#include "ring.h"
#include "route.h"
#include "syscalls.h"

#define unlikely(x) __builtin_expect(!!(x), 0)

/* Adaptive: how long the loop goes on looking after the last packet. A sleep in poll() costs the next
 * packet some 50 microseconds of wakeup; spinning for about that long is the classic bound that never
 * wastes more than twice the best choice. */
#define SPIN_NS (50 * 1000ull)

/* Descriptors the kernel has not sent yet (its budget was used up, memory was short): no event tells us
 * when to try again, so a sleep is cut to this. */
#define TX_RETRY_NS (1000 * 1000ull)

/* An interface that is down is no short trouble, and nothing tells when it is up again: it is asked twice at
 * once, then after a millisecond, and ever less often, down to this. What waits for it goes so late at most. */
#define DOWN_RETRY_NS (10 * 1000 * 1000ull)

/* ---- between ports ----------------------------------------------------------------------------- */

/* Runs are worked off in blocks of this many entries: of a constant number the compiler makes straight code,
 * with neither a counter nor an index to carry along, which is worth five instructions a packet. (An enum,
 * because a pragma expands no macros.) */
enum { BLOCK = 8 };

#define inlined inline __attribute__((always_inline))

/* From which port to which, and what the loop needs to know of both. */
struct hop {
	struct frames frames;
	uint8_t *area;
	uint32_t max_length;
	uint8_t from, to;       /* owner bytes */
};

/* How far a run of packets got: the first descriptor that was not forwarded, and the bytes before it. Two
 * words, so that it travels in registers. */
struct progress {
	const struct xdp_desc *end;
	uint64_t bytes;
};

/* One packet from RX to TX: receive, act, transmit. Returns its length; 0: it cannot go, and nothing has
 * happened to it. */
static inlined uint64_t forward_one(const struct hop *hop, const struct xdp_desc *rx, struct xdp_desc *tx,
				    enum xskd_action action)
{
	const uint64_t addr = rx->addr, length = length_of(rx);

	if (unlikely(!sendable(length, hop->max_length) || !inside(&hop->frames, addr, length) ||
		     !owned(&hop->frames, addr, hop->from)))
		return 0;
	/* In this order, or a successor could not tell how far a killed worker got (adopt.c): a frame that has
	 * changed its owner is in its slot, and a packet whose frame has not is as it arrived. */
	*tx = *rx;
	in_this_order();
	hop->frames.owner[addr >> hop->frames.shift] = hop->to;
	in_this_order();
	if (action == XSKD_SWAP_MACS)
		swap_macs(hop->area + addr);
	if (action == XSKD_ROUTE) {
		route_mend(hop->area + addr);
		route_forget(hop->area + addr, ROUTE_META);
	}
	return length;
}

/* At most n packets. Returns how many could go, and adds their bytes. */
static inlined uint32_t forward_block(const struct hop *hop, const struct xdp_desc *rx, struct xdp_desc *tx,
				      uint32_t n, enum xskd_action action, uint64_t *bytes)
{
	uint32_t i;

#pragma GCC unroll BLOCK
	for (i = 0; i < n; i++) {
		uint64_t length = forward_one(hop, rx + i, tx + i, action);

		if (unlikely(length == 0))
			break;
		*bytes += length;
	}
	return i;
}

/* Packets from RX to TX, up to the first that cannot go. The exceptional packet is the caller's business, so
 * that nothing but this is in the processor's way. */
static inlined struct progress forward_run(const struct xskd_port *in, const struct xskd_port *out,
					   const struct xdp_desc *rx, const struct xdp_desc *end,
					   struct xdp_desc *tx, enum xskd_action action)
{
	const struct hop hop = {
		.frames = frames_of(in->umem), .area = in->umem->area, .max_length = out->max_length,
		.from = (uint8_t)(OWNER_RX_SIDE | in->index), .to = (uint8_t)(OWNER_TX_SIDE | out->index),
	};
	uint64_t bytes = 0;
	uint32_t good;

	for (; end - rx >= BLOCK; rx += BLOCK, tx += BLOCK) {
		good = forward_block(&hop, rx, tx, BLOCK, action, &bytes);
		if (unlikely(good < BLOCK))
			return (struct progress){ rx + good, bytes };
	}
	good = forward_block(&hop, rx, tx, (uint32_t)(end - rx), action, &bytes);
	return (struct progress){ rx + good, bytes };
}

/* The actions, each compiled on its own so that the loop has no branch for it. */
static __attribute__((noinline)) struct progress
connect_run(const struct xskd_port *in, const struct xskd_port *out, const struct xdp_desc *rx,
	    const struct xdp_desc *end, struct xdp_desc *tx)
{
	return forward_run(in, out, rx, end, tx, XSKD_UNCHANGED);
}

static __attribute__((noinline)) struct progress
reflect_run(const struct xskd_port *in, const struct xskd_port *out, const struct xdp_desc *rx,
	    const struct xdp_desc *end, struct xdp_desc *tx)
{
	return forward_run(in, out, rx, end, tx, XSKD_SWAP_MACS);
}

/* For packets that route_look() has found to leave by `out`. */
static __attribute__((noinline)) struct progress
route_run(const struct xskd_port *in, const struct xskd_port *out, const struct xdp_desc *rx,
	  const struct xdp_desc *end, struct xdp_desc *tx)
{
	return forward_run(in, out, rx, end, tx, XSKD_ROUTE);
}

/* A packet that is good but for `otherwise`: count why it cannot go, take its frame back, with nothing in front
 * of it that a later packet could take for its own. Returns its length in bytes. */
static uint64_t __attribute__((noinline, cold)) drop(struct xskd_port *in, const struct xdp_desc *desc,
						     enum xskd_drop otherwise)
{
	const struct frames frames = frames_of(in->umem);

	if (owned(&frames, desc->addr, (uint8_t)(OWNER_RX_SIDE | in->index)) &&
	    fits(&frames, desc->addr, length_of(desc))) {
		count(&in->counters->drops[desc->len < ETH_HLEN ? XSKD_DROP_UNDERSIZE : otherwise], 1);
		route_forget(in->umem->area + desc->addr, desc->addr & frames.mask);
		put_free(in->umem, (uint32_t)(desc->addr >> frames.shift));
		in->rx_side--;
	} else {
		frames_refuse(in, desc);
	}
	return desc->len;
}

/* At most n completions. Returns how many were good. */
static inlined uint32_t recycle_block(const struct frames *frames, const uint64_t *sent, uint64_t *fill,
				      uint8_t before, uint8_t after, uint32_t n)
{
	uint32_t i;

#pragma GCC unroll BLOCK
	for (i = 0; i < n; i++) {
		const uint64_t frame = sent[i] >> frames->shift;

		if (unlikely(frame >= frames->count || frames->owner[frame] != before))
			break;
		fill[i] = frame << frames->shift;
		in_this_order();        /* as in forward_one */
		frames->owner[frame] = after;
	}
	return i;
}

/* Completions of one port onto FILL of another, up to the first that names no frame of the port's TX side.
 * Returns how many. The kernel wants the frame's start back, wherever the packet was in it. */
static __attribute__((noinline)) uint32_t recycle_run(const struct xskd_port *from, const struct xskd_port *to,
						      const uint64_t *sent, uint64_t *fill, uint32_t n)
{
	const struct frames frames = frames_of(from->umem);
	const uint8_t before = (uint8_t)(OWNER_TX_SIDE | from->index);
	const uint8_t after = (uint8_t)(OWNER_RX_SIDE | to->index);
	uint32_t done = 0;

	for (; n - done >= BLOCK; done += BLOCK) {
		uint32_t good = recycle_block(&frames, sent + done, fill + done, before, after, BLOCK);

		if (unlikely(good < BLOCK))
			return done + good;
	}
	return done + recycle_block(&frames, sent + done, fill + done, before, after, n - done);
}

/* What the egress has sent is what the ingress needs next: complete and refill in one go, without the way
 * over the free stack, as far as FILL has room. Returns the completions taken. */
static inlined uint32_t recycle(struct xskd_port *from, struct xskd_port *to)
{
	struct xskd_ring *completion = &from->rings[XSKD_COMPLETION], *fill = &to->rings[XSKD_FILL];
	const uint32_t sent = ring_used_by_consumer(completion), lent = ring_used_by_producer(fill);
	uint32_t n = ring_room(fill, lent, ring_given(completion, sent, completion->size)), kept = 0;

	observe(from, XSKD_COMPLETION, sent);
	observe(to, XSKD_FILL, lent);
	if (n == 0)
		return 0;
	intend(from->umem, OPERATION_RECYCLE, from->index, to->index, fill->own);
	for (uint32_t done = 0; done < n;) {
		uint32_t run = ring_run(fill, kept, ring_run(completion, done, n - done));
		uint32_t good = recycle_run(from, to, ring_addr(completion, done), ring_addr(fill, kept), run);

		kept += good;
		done += good;
		if (unlikely(good < run)) {
			count(&from->counters->completion_invalid, 1);
			frames_wrong(from, XSKD_COMPLETION);
			done++;
		}
	}
	poison(to->umem, fill, kept);
	ring_submit(fill, kept);
	ring_release(completion, n);
	settle(from->umem);
	from->tx_side -= kept;
	to->rx_side += kept;
	to->refilled += kept;
	count(&from->counters->tx_completed, kept);
	return n;
}

/* The next n packets of a port, for one reason as far as they are good. */
static uint32_t __attribute__((noinline, cold)) drop_run(const struct xskd_forward *forward, struct xskd_port *in,
							 uint32_t n, enum xskd_drop reason)
{
	struct xskd_ring *rx = &in->rings[XSKD_RX];
	uint64_t bytes = 0;

	if (forward->capture)
		xskd_capture_burst(forward->capture, in, XSKD_RX, 0, n);
	intend(in->umem, OPERATION_RECEIVE, in->index, in->index, 0);
	for (uint32_t i = 0; i < n; i++)
		bytes += drop(in, ring_desc(rx, i), reason);
	ring_release(rx, n);
	settle(in->umem);
	count(&in->counters->rx_packets, n);
	count(&in->counters->rx_bytes, bytes);
	return n;
}

/* The egress TX ring is full for at most `most` packets. They wait in RX, where the kernel counts an overrun as
 * rx_ring_full; past the deadline they are dropped here, so that the ingress does not stall with its egress. */
static uint32_t __attribute__((noinline, cold)) blocked(const struct xskd_forward *forward, struct xskd_port *in,
							struct xskd_port *out, uint32_t most)
{
	const uint32_t n = ring_peek(&in->rings[XSKD_RX], most);

	observe(out, XSKD_TX, ring_used_by_producer(&out->rings[XSKD_TX]));
	if (n == 0)
		return 0;
	if (forward->action != XSKD_ROUTE)      /* may come here several times a turn */
		count(&in->counters->tx_blocked, 1);
	if (out->blocked_since_ns == 0)
		out->blocked_since_ns = forward->now_ns;
	if (forward->now_ns - out->blocked_since_ns < DEADLINE_NS)
		return 0;
	if (forward->action != XSKD_ROUTE)
		count_burst(in->counters->rx_batches, n);
	return drop_run(forward, in, n, XSKD_DROP_TX_FULL);
}

/* One burst of at most `most` packets from one port to its egress: receive, act, transmit. Returns the packets
 * taken from RX. `route`: it is one run of a burst that route_burst() has looked at as a whole. */
static inlined uint32_t forward_burst(const struct xskd_forward *forward, struct xskd_port *in,
				      struct xskd_port *out, uint32_t most, bool route)
{
	struct xskd_ring *rx = &in->rings[XSKD_RX], *tx = &out->rings[XSKD_TX];
	const uint32_t waiting = ring_used_by_consumer(rx), unsent = ring_used_by_producer(tx);
	const uint32_t room = ring_room(tx, unsent, XSKD_BURST);
	const uint32_t n = ring_given(rx, waiting, room < most ? room : most);
	uint32_t sent = 0;
	const bool swap = forward->action == XSKD_SWAP_MACS;
	uint64_t bytes = 0, dropped_bytes = 0;

	if (!route)
		observe(in, XSKD_RX, waiting);
	if (unlikely(room == 0))
		return blocked(forward, in, out, most);
	if (!route)
		out->blocked_since_ns = 0;
	if (n == 0) {
		observe(out, XSKD_TX, unsent);
		return 0;
	}
	if (!route)
		observe_burst(in, forward->looked_ns);
	intend(in->umem, OPERATION_FORWARD, in->index, out->index, tx->own);
	for (uint32_t done = 0; done < n;) {
		const struct xdp_desc *from = ring_desc(rx, done);
		const struct xdp_desc *end = from + ring_run(tx, sent, ring_run(rx, done, n - done));
		struct progress run = route ? route_run(in, out, from, end, ring_desc(tx, sent)) :
				      swap ? reflect_run(in, out, from, end, ring_desc(tx, sent)) :
					     connect_run(in, out, from, end, ring_desc(tx, sent));

		sent += (uint32_t)(run.end - from);
		done += (uint32_t)(run.end - from);
		bytes += run.bytes;
		if (unlikely(run.end != end)) {
			dropped_bytes += drop(in, run.end, XSKD_DROP_OVERSIZE);
			done++;
		}
	}
	ring_submit(tx, sent);
	ring_release(rx, n);
	settle(in->umem);
	in->rx_side -= sent;
	out->tx_side += sent;
	out->submitted += sent;
	observe(out, XSKD_TX, unsent + sent);
	if (!route)
		count_burst(in->counters->rx_batches, n);
	if (sent)
		count_burst(out->counters->tx_batches, sent);
	count(&in->counters->rx_packets, n);
	count(&in->counters->rx_bytes, bytes + dropped_bytes);
	count(&out->counters->tx_packets, sent);
	count(&out->counters->tx_frames, sent);
	count(&out->counters->tx_bytes, bytes);
	return n;
}

/* The same while somebody wants copies: of what arrives as it came, of what leaves as it goes. Copying is no part
 * of a batch, so that a worker that is killed meanwhile leaves nothing in doubt. A frame that was submitted holds
 * still until our own next turn. */
static uint32_t __attribute__((noinline, cold)) copied_burst(const struct xskd_forward *forward, struct xskd_port *in,
							     struct xskd_port *out, uint32_t most, bool route)
{
	struct xskd_ring *rx = &in->rings[XSKD_RX], *tx = &out->rings[XSKD_TX];
	const uint32_t first = tx->own, room = ring_reserve(tx, most), n = ring_peek(rx, room);
	uint32_t taken;

	if (room == 0)
		return blocked(forward, in, out, most);
	xskd_capture_burst(forward->capture, in, XSKD_RX, 0, n);
	taken = forward_burst(forward, in, out, n, route);
	xskd_capture_burst(forward->capture, out, XSKD_TX, first - tx->own, tx->own - first);
	return taken;
}

/* Packets of several descriptors, or somebody wants copies. */
static uint32_t __attribute__((noinline, cold)) slower_burst(const struct xskd_forward *forward,
							     struct xskd_port *in, struct xskd_port *out)
{
	return in->multi_buffer ? packets_burst(forward, in, out) :
				  copied_burst(forward, in, out, XSKD_BURST, false);
}

/* ---- routing ----------------------------------------------------------------------------------- */

/* By which port each of the next n packets of a port leaves. What is no packet leaves nowhere. */
static void __attribute__((noinline)) route_look(const struct xskd_forward *forward, const struct xskd_port *in,
						 uint32_t n, uint8_t *egress)
{
	const struct frames frames = frames_of(in->umem);
	const uint8_t *area = in->umem->area;
	const uint32_t ports = forward->port_count;

	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = ring_desc(&in->rings[XSKD_RX], i);

		egress[i] = NOWHERE;
		if (desc->addr >> frames.shift < frames.count && fits(&frames, desc->addr, length_of(desc)))
			egress[i] = (uint8_t)route_egress(area + desc->addr, desc->addr & frames.mask,
							  desc->len, ports, NOWHERE);
	}
}

/* One burst from one port, cut into runs of packets with the same egress: each is a batch of its own, in the
 * order of arrival. An egress that is full stops it, and is noted; see blocked(). */
static uint32_t __attribute__((noinline)) route_burst(struct xskd_forward *forward, struct xskd_port *in)
{
	const uint32_t waiting = ring_used_by_consumer(&in->rings[XSKD_RX]);
	const uint64_t lost = in->counters->drops[XSKD_DROP_TX_FULL];
	uint32_t n = ring_given(&in->rings[XSKD_RX], waiting, XSKD_BURST), done, taken = 0;
	uint8_t egress[XSKD_BURST];

	observe(in, XSKD_RX, waiting);
	forward->egress[in->index] = NOWHERE;
	if (n == 0)
		return 0;
	if (unlikely(in->multi_buffer)) {
		n = packets_look(forward, in, n, egress, &taken);
		if (n == 0)
			return taken;
	} else {
		observe_burst(in, forward->looked_ns);
		route_look(forward, in, n, egress);
	}
	for (done = 0; done < n; done += taken) {
		struct xskd_port *out = egress[done] == NOWHERE ? NULL : forward->ports[egress[done]];
		uint32_t run = 1;

		while (done + run < n && egress[done + run] == egress[done])
			run++;
		if (unlikely(in->multi_buffer))
			taken = packets_run(forward, in, out, run);
		else if (unlikely(!out))
			taken = drop_run(forward, in, run, XSKD_DROP_NO_METADATA);
		else if (unlikely(forward->capture))
			taken = copied_burst(forward, in, out, run, true);
		else
			taken = forward_burst(forward, in, out, run, true);
		if (out)
			forward->source[out->index] = in->index;
		if (unlikely(taken == 0)) {
			forward->egress[in->index] = egress[done];
			break;
		}
	}
	if (done && !in->multi_buffer)  /* each of its runs is a burst of its own */
		count_burst(in->counters->rx_batches, done);
	if (unlikely(done < n || in->counters->drops[XSKD_DROP_TX_FULL] != lost))
		count(&in->counters->tx_blocked, 1);
	return done;
}

/* Nothing arrives, the driver asks to be woken, and there is something on FILL to wake it for. */
static inlined bool may_have_run_dry(const struct xskd_port *port)
{
	const struct xskd_ring *fill = &port->rings[XSKD_FILL];

	return ring_needs_wakeup(fill) && ring_used_by_producer(fill);
}

/* What has been sent from `out` is what `in` needs next; what it has no room for is anybody's. Returns frames
 * moved. */
static inlined uint32_t recycle_all(struct xskd_port *out, struct xskd_port *in)
{
	uint32_t moved = recycle(out, in);

	if (unlikely(ring_used_by_consumer(&out->rings[XSKD_COMPLETION])))
		moved += xskd_complete(out);
	return moved;
}

/* Between two questions whether an egress is up again. */
static uint64_t next_pause(uint64_t last_ns)
{
	if (last_ns == 0)
		return TX_RETRY_NS;
	return 2 * last_ns < DOWN_RETRY_NS ? 2 * last_ns : DOWN_RETRY_NS;
}

/* To an egress that was down when it was last told: is it up again? */
static void __attribute__((noinline, cold)) tell_if_up(const struct xskd_forward *forward, struct xskd_port *out,
						       uint32_t pending)
{
	if (forward->now_ns < out->ask_at_ns)
		return;
	out->down = 0;
	port_wakeup_tx(out, pending);
	out->pause_ns = out->down ? next_pause(out->pause_ns) : 0;
	out->ask_at_ns = out->down ? forward->now_ns + out->pause_ns : 0;
}

static inlined void tell_to_send(const struct xskd_forward *forward, struct xskd_port *out)
{
	const uint32_t pending = ring_used_by_producer(&out->rings[XSKD_TX]);

	if (pending == 0)
		return;
	if (unlikely(out->down))
		tell_if_up(forward, out, pending);
	else
		port_wakeup_tx(out, pending);
}

/* FILL is filled up, and its driver woken where it asks. `taken`: packets that this turn took from RX. */
static inlined uint32_t replenish(struct xskd_port *in, uint32_t taken)
{
	uint32_t moved = 0;

	if (ring_reserve(&in->rings[XSKD_FILL], 1))
		moved = xskd_refill(in);
	if (in->refilled || (taken == 0 && may_have_run_dry(in)))
		xskd_wakeup_rx(in);
	return moved;
}

/* An egress with some room is still too slow for what it gets, if it was full and is not half empty since: its
 * packets are dropped at once when it is full again. Else each free slot would give it a new deadline, and a
 * slow egress would slow down all the others, which is what the deadline is there to prevent. */
static inline void route_unblock(struct xskd_port *out)
{
	const struct xskd_ring *tx = &out->rings[XSKD_TX];

	if (unlikely(out->blocked_since_ns) && ring_used_by_producer(tx) <= tx->size / 2)
		out->blocked_since_ns = 0;
}

/* A turn of XSKD_ROUTE: each port may send to each, so it is told to send when all have had their burst. Frames
 * that were sent go to the FILL they most likely came from; as far as that has no room, they are anybody's. */
static uint32_t __attribute__((noinline)) route_turn(struct xskd_forward *forward)
{
	uint32_t moved = 0, taken;

	for (uint32_t i = 0; i < forward->port_count; i++) {
		moved += recycle_all(forward->ports[i], forward->ports[forward->source[i]]);
		route_unblock(forward->ports[i]);
	}
	for (uint32_t i = 0; i < forward->port_count; i++) {
		moved += taken = route_burst(forward, forward->ports[i]);
		moved += replenish(forward->ports[i], taken);
	}
	for (uint32_t i = 0; i < forward->port_count; i++)
		tell_to_send(forward, forward->ports[i]);
	for (uint32_t i = 0; i < forward->port_count; i++)
		if (unlikely(forward->ports[i]->until_sample == 0))
			observe_sent(forward->ports[i]);
	for (uint32_t i = 0; !moved && i < forward->port_count; i++)
		observe(forward->ports[i], XSKD_TX, ring_used_by_producer(&forward->ports[i]->rings[XSKD_TX]));
	return moved;
}

/* One turn over all ports. Returns frames moved; 0 means that there was nothing to do. */
uint32_t xskd_forward_turn(struct xskd_forward *forward)
{
	uint32_t moved = 0;

	if (unlikely(forward->action == XSKD_ROUTE))
		return route_turn(forward);
	for (uint32_t i = 0; i < forward->port_count; i++) {
		struct xskd_port *in = forward->ports[i], *out = forward->ports[forward->egress[i]];
		uint32_t taken;

		moved += recycle_all(out, in);
		taken = unlikely(forward->capture || in->multi_buffer) ?
				slower_burst(forward, in, out) :
				forward_burst(forward, in, out, XSKD_BURST, false);
		moved += taken;
		tell_to_send(forward, out);
		if (unlikely(in->until_sample == 0))
			observe_sent(in);
		moved += replenish(in, taken);
	}
	return moved;
}

/* ---- the loop ---------------------------------------------------------------------------------- */

static int first_error(const struct xskd_forward *forward)
{
	for (uint32_t i = 0; i < forward->port_count; i++)
		if (unlikely(forward->ports[i]->error))
			return forward->ports[i]->error;
	return 0;
}

/* Does what is in a port's RX wait for room on a full TX ring? Then it is no news that there is something. */
static bool held_up(const struct xskd_forward *forward, uint32_t port)
{
	const uint32_t egress = forward->egress[port];

	return egress != NOWHERE && forward->ports[egress]->blocked_since_ns;
}

/* May poll() look at a port? In copy mode it sends what is on TX there, and a packet that the driver then refuses
 * is lost without a word: that is for a wakeup, which tells. */
static bool may_poll(const struct xskd_port *port)
{
	return !(port->poll_sends && ring_used_by_producer(&port->rings[XSKD_TX]));
}

/* In how many nanoseconds to try again to send what waits on TX. */
static uint64_t retry_in(const struct xskd_forward *forward, const struct xskd_port *port)
{
	return port->ask_at_ns > forward->now_ns ? port->ask_at_ns - forward->now_ns : TX_RETRY_NS;
}

/* Sleeps until a packet arrives, a full TX ring has room, somebody writes to control_fd, or the time is
 * up. POLLOUT is asked for only while TX is blocked: it is ready whenever TX is at most half full, so
 * asking always would never sleep. POLLIN is left out for a port that is held up, for the same
 * reason. poll() itself does the wakeup of an empty FILL ring. With something on TX it sleeps one
 * millisecond at a time, ten where the link is down, so a port that is left out meanwhile is looked at again then. */
static int wait_for_work(struct xskd_forward *forward, uint64_t timeout_ns)
{
	struct pollfd fds[XSKD_MAX_PORTS + 1];
	int ready;

	for (uint32_t i = 0; i < forward->port_count; i++) {
		const struct xskd_port *port = forward->ports[i];
		short events = 0;

		if (!held_up(forward, i))
			events |= POLLIN;
		if (port->blocked_since_ns)
			events |= POLLOUT;
		fds[i] = (struct pollfd){ .fd = may_poll(port) ? port->fd : -1, .events = events };
		if (ring_needs_wakeup(&port->rings[XSKD_FILL]))
			count(&port->counters->wakeups[XSKD_WAKEUP_SLEEP], 1);
		if (ring_used_by_producer(&port->rings[XSKD_TX]) && timeout_ns > retry_in(forward, port))
			timeout_ns = retry_in(forward, port);
	}
	fds[forward->port_count] = (struct pollfd){ .fd = forward->control_fd, .events = POLLIN };
	count(&forward->counters->sleeps, 1);
	ready = xskd_sys_poll(fds, forward->port_count + 1, timeout_ns);
	if (ready < 0)
		return -ready;
	for (uint32_t i = 0; i < forward->port_count; i++)
		if (ready && fds[i].revents & (POLLERR | POLLNVAL))
			return forward->ports[i]->error = ENXIO;
	forward->control_ready = ready && fds[forward->port_count].revents;
	return 0;
}

static bool may_sleep(const struct xskd_forward *forward)
{
	if (forward->poll == XSKD_POLL_ADAPTIVE)
		return forward->now_ns >= forward->busy_until_ns;
	return forward->poll == XSKD_POLL_WAKEUP;
}

/* What has passed since `now_ns` was spent on this; returns the time of a new look. */
static uint64_t spend(struct xskd_forward *forward, enum xskd_regime regime)
{
	uint64_t now = xskd_sys_now_ns();

	forward->spent_ns[regime] += now - forward->now_ns;
	return forward->now_ns = now;
}

int xskd_forward_run(struct xskd_forward *forward, uint64_t duration_ns)
{
	uint64_t deadline;
	int error = 0;

	forward->control_ready = 0;
	forward->now_ns = xskd_sys_now_ns();
	deadline = forward->now_ns + duration_ns;
	do {
		uint32_t moved = xskd_forward_turn(forward);

		count(&forward->counters->turns, 1);
		forward->looked_ns = forward->now_ns;
		if (moved) {
			forward->busy_until_ns = forward->now_ns + SPIN_NS;
			spend(forward, XSKD_REGIME_WORKING);
		} else {
			count(&forward->counters->turns_idle, 1);
			spend(forward, XSKD_REGIME_SPINNING);
			if (may_sleep(forward) && forward->now_ns < deadline) {
				error = wait_for_work(forward, deadline - forward->now_ns);
				forward->looked_ns = spend(forward, XSKD_REGIME_SLEEPING);
			}
		}
		set(&forward->counters->heartbeat_ns, forward->now_ns);
		if (!error)
			error = first_error(forward);
	} while (!error && !forward->control_ready && forward->now_ns < deadline);
	return error;
}
