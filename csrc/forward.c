/* SPDX-License-Identifier: Apache-2.0
 *
 * The hot loop: receive, act, transmit, complete, refill, wake up.
 *
 * This file and bpf/xdp_prog.bpf.c are the whole way of a packet. It never parses configuration, never
 * allocates, never logs, never blocks, and knows no names; Python hands it mapped rings and calls
 * xskd_forward_run() again and again with a time bound. Its system calls are the four in syscalls.h.
 *
 * One turn takes at most XSKD_BURST packets from each port and ends every burst by telling the kernel,
 * so one packet in is one packet out at once. A packet that is not forwarded is counted under exactly one
 * reason, and its frame goes back to the free stack.
 */
#define _GNU_SOURCE
#include "forward.h"

#include <errno.h>
#include <string.h>

#include "frames.h"
#include "ring.h"
#include "syscalls.h"

#define unlikely(x) __builtin_expect(!!(x), 0)

/* How long packets may wait in RX for room on a full TX ring before they are dropped as tx_full. Long
 * enough to ride out a peer that pauses for a few scheduler ticks, short enough that a dead egress does
 * not turn its ingress into a store of stale packets. */
#define TX_DEADLINE_NS (20 * 1000 * 1000ull)

/* Adaptive: how long the loop goes on looking after the last packet. A sleep in poll() costs the next
 * packet some 50 microseconds of wakeup; spinning for about that long is the classic bound that never
 * wastes more than twice the best choice. */
#define SPIN_NS (50 * 1000ull)

/* Descriptors the kernel has not sent yet (its budget was used up, memory was short): no event tells us
 * when to try again, so a sleep is cut to this. */
#define TX_RETRY_NS (1000 * 1000ull)

struct mac {
	uint32_t first;
	uint16_t last;
} __attribute__((packed, may_alias));

static inline void swap_macs(uint8_t *packet)
{
	struct mac *destination = (struct mac *)packet, *source = destination + 1;
	struct mac kept = *destination;

	*destination = *source;
	*source = kept;
}

/* ---- between ports ----------------------------------------------------------------------------- */

/* How far a run of packets got: the first descriptor that was not forwarded, and the bytes before it. Two
 * words, so that it travels in registers, and so does everything else that the loop below needs. */
struct progress {
	const struct xdp_desc *end;
	uint64_t bytes;
};

/* Packets from RX to TX, up to the first that cannot go: receive, act, transmit. The exceptional packet is
 * the caller's business, so that nothing but this is in the processor's way. */
static inline __attribute__((always_inline)) struct progress
forward_run(const struct xskd_port *in, const struct xskd_port *out, const struct xdp_desc *rx,
	    const struct xdp_desc *end, struct xdp_desc *tx, bool swap)
{
	const struct frames frames = frames_of(in->umem);
	uint8_t *const area = in->umem->area;
	const uint8_t from = (uint8_t)(OWNER_RX_SIDE | in->index), to = (uint8_t)(OWNER_TX_SIDE | out->index);
	const uint32_t max_length = out->max_length;
	uint64_t bytes = 0;

	for (; rx != end; rx++, tx++) {
		const uint64_t addr = rx->addr, length = length_of(rx);

		if (unlikely(!owned(&frames, addr, from) || !fits(&frames, addr, length) ||
			     !sendable(length, max_length)))
			break;
		if (swap)
			swap_macs(area + addr);
		frames.owner[addr >> frames.shift] = to;
		bytes += length;
		*tx = *rx;
	}
	return (struct progress){ rx, bytes };
}

/* The actions, each compiled on its own so that the loop has no branch for it. */
static __attribute__((noinline)) struct progress
connect_run(const struct xskd_port *in, const struct xskd_port *out, const struct xdp_desc *rx,
	    const struct xdp_desc *end, struct xdp_desc *tx)
{
	return forward_run(in, out, rx, end, tx, false);
}

static __attribute__((noinline)) struct progress
reflect_run(const struct xskd_port *in, const struct xskd_port *out, const struct xdp_desc *rx,
	    const struct xdp_desc *end, struct xdp_desc *tx)
{
	return forward_run(in, out, rx, end, tx, true);
}

/* The packet that stopped a run: count why, take its frame back. Returns its length in bytes. */
static uint64_t __attribute__((noinline, cold)) drop(struct xskd_port *in, const struct xdp_desc *desc)
{
	const struct frames frames = frames_of(in->umem);

	if (owned(&frames, desc->addr, (uint8_t)(OWNER_RX_SIDE | in->index)) &&
	    fits(&frames, desc->addr, length_of(desc))) {
		count(&in->counters->drops[desc->len < ETH_HLEN ? XSKD_DROP_UNDERSIZE :
								  XSKD_DROP_OVERSIZE], 1);
		put_free(in->umem, (uint32_t)(desc->addr >> frames.shift));
		in->rx_side--;
	} else {
		frames_refuse(in, desc);
	}
	return desc->len;
}

/* Completions of one port onto FILL of another, up to the first that names no frame of the port's TX
 * side, which is returned. The kernel wants the frame's start back, wherever the packet was in it. */
static __attribute__((noinline)) const uint64_t *
recycle_run(const struct xskd_port *from, const struct xskd_port *to, const uint64_t *sent,
	    const uint64_t *end, uint64_t *fill)
{
	const struct frames frames = frames_of(from->umem);
	const uint8_t before = (uint8_t)(OWNER_TX_SIDE | from->index);
	const uint8_t after = (uint8_t)(OWNER_RX_SIDE | to->index);

	for (; sent != end; sent++, fill++) {
		const uint64_t addr = *sent;

		if (unlikely(!owned(&frames, addr, before)))
			break;
		frames.owner[addr >> frames.shift] = after;
		*fill = addr & ~frames.mask;
	}
	return sent;
}

/* What the egress has sent is what the ingress needs next: complete and refill in one go, without the way
 * over the free stack, as far as FILL has room. Returns the completions taken. */
static inline uint32_t recycle(struct xskd_port *from, struct xskd_port *to)
{
	struct xskd_ring *completion = &from->rings[XSKD_COMPLETION], *fill = &to->rings[XSKD_FILL];
	uint32_t n = ring_peek(completion, completion->size), kept = 0;

	n = ring_reserve(fill, n);
	for (uint32_t done = 0; done < n;) {
		const uint64_t *sent = ring_addr(completion, done);
		uint32_t run = ring_run(fill, kept, ring_run(completion, done, n - done));
		uint32_t good = (uint32_t)(recycle_run(from, to, sent, sent + run, ring_addr(fill, kept)) - sent);

		kept += good;
		done += good;
		if (unlikely(good < run)) {
			count(&from->counters->completion_invalid, 1);
			done++;
		}
	}
	ring_release(completion, n);
	ring_submit(fill, kept);
	from->tx_side -= kept;
	to->rx_side += kept;
	to->refilled += kept;
	count(&from->counters->tx_completed, kept);
	return n;
}

/* The egress TX ring is full. Packets wait in RX, where the kernel counts an overrun as rx_ring_full;
 * past the deadline they are dropped here, so that the ingress does not stall with its egress. */
static uint32_t __attribute__((noinline, cold)) blocked(const struct xskd_forward *forward,
							struct xskd_port *in, struct xskd_port *out)
{
	struct xdp_desc held[XSKD_BURST];
	uint32_t n;

	if (ring_peek(&in->rings[XSKD_RX], 1) == 0)
		return 0;
	count(&in->counters->tx_blocked, 1);
	if (out->blocked_since_ns == 0)
		out->blocked_since_ns = forward->now_ns;
	if (forward->now_ns - out->blocked_since_ns < TX_DEADLINE_NS)
		return 0;
	n = xskd_receive(in, held, XSKD_BURST);
	xskd_umem_give(in->umem, held, n);
	count(&in->counters->drops[XSKD_DROP_TX_FULL], n);
	return n;
}

/* One burst from one port to its egress: receive, act, transmit. Returns the packets taken from RX. */
static inline uint32_t forward_burst(const struct xskd_forward *forward, struct xskd_port *in,
				     struct xskd_port *out)
{
	struct xskd_ring *rx = &in->rings[XSKD_RX], *tx = &out->rings[XSKD_TX];
	uint32_t room = ring_reserve(tx, XSKD_BURST), n, sent = 0;
	const bool swap = forward->action == XSKD_SWAP_MACS;
	uint64_t bytes = 0, dropped_bytes = 0;

	if (unlikely(room == 0))
		return blocked(forward, in, out);
	out->blocked_since_ns = 0;
	n = ring_peek(rx, room);
	if (n == 0)
		return 0;
	for (uint32_t done = 0; done < n;) {
		const struct xdp_desc *from = ring_desc(rx, done);
		const struct xdp_desc *end = from + ring_run(tx, sent, ring_run(rx, done, n - done));
		struct progress run = swap ? reflect_run(in, out, from, end, ring_desc(tx, sent)) :
					     connect_run(in, out, from, end, ring_desc(tx, sent));

		sent += (uint32_t)(run.end - from);
		done += (uint32_t)(run.end - from);
		bytes += run.bytes;
		if (unlikely(run.end != end)) {
			dropped_bytes += drop(in, run.end);
			done++;
		}
	}
	ring_submit(tx, sent);
	ring_release(rx, n);
	in->rx_side -= sent;
	out->tx_side += sent;
	count(&in->counters->rx_packets, n);
	count(&in->counters->rx_bytes, bytes + dropped_bytes);
	count(&out->counters->tx_packets, sent);
	count(&out->counters->tx_bytes, bytes);
	return n;
}

/* One turn over all ports. Returns frames moved; 0 means that there was nothing to do. */
uint32_t xskd_forward_turn(struct xskd_forward *forward)
{
	uint32_t moved = 0;

	for (uint32_t i = 0; i < forward->port_count; i++) {
		struct xskd_port *in = forward->ports[i], *out = forward->ports[forward->egress[i]];

		if (ring_used_by_consumer(&out->rings[XSKD_COMPLETION]))
			moved += recycle(out, in) + xskd_complete(out);
		moved += forward_burst(forward, in, out);
		if (ring_used_by_producer(&out->rings[XSKD_TX]))
			xskd_wakeup_tx(out);
		if (ring_reserve(&in->rings[XSKD_FILL], 1))
			moved += xskd_refill(in);
		if (in->refilled)
			xskd_wakeup_rx(in);
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

/* Sleeps until a packet arrives, a full TX ring has room, somebody writes to control_fd, or the time is
 * up. POLLOUT is asked for only while TX is blocked: it is ready whenever TX is at most half full, so
 * asking always would never sleep. POLLIN is left out for a port whose egress is blocked, for the same
 * reason. poll() itself does the wakeup of an empty FILL ring. */
static int wait_for_work(struct xskd_forward *forward, uint64_t timeout_ns)
{
	struct pollfd fds[XSKD_MAX_PORTS + 1];
	int ready;

	for (uint32_t i = 0; i < forward->port_count; i++) {
		const struct xskd_port *port = forward->ports[i];
		const struct xskd_port *out = forward->ports[forward->egress[i]];
		short events = 0;

		if (!out->blocked_since_ns)
			events |= POLLIN;
		if (port->blocked_since_ns)
			events |= POLLOUT;
		fds[i] = (struct pollfd){ .fd = port->fd, .events = events };
		if (ring_used_by_producer(&port->rings[XSKD_TX]) && timeout_ns > TX_RETRY_NS)
			timeout_ns = TX_RETRY_NS;
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
		if (moved) {
			forward->busy_until_ns = forward->now_ns + SPIN_NS;
		} else {
			count(&forward->counters->turns_idle, 1);
			if (may_sleep(forward))
				error = wait_for_work(forward, deadline - forward->now_ns);
		}
		forward->now_ns = xskd_sys_now_ns();
		set(&forward->counters->heartbeat_ns, forward->now_ns);
		if (!error)
			error = first_error(forward);
	} while (!error && !forward->control_ready && forward->now_ns < deadline);
	return error;
}
