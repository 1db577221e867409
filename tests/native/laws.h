/* SPDX-License-Identifier: Apache-2.0
 *
 * What must hold in a worker whatever its kernel (hostile.h) does:
 *
 *   - No byte outside the UMEM, the rings and the record is touched; the sanitizers say so.
 *   - Every frame is in exactly one place by the worker's own accounts, and the accounts agree.
 *   - What the worker gives to the kernel is always right, whatever it was given.
 *   - No counter goes back, and every packet is counted once.
 *   - A ring whose index cannot be ends the worker; so do too many wrong entries.
 */
#ifndef LAWS_H
#define LAWS_H

#include "hostile.h"

/* A law is broken: libFuzzer keeps the input that did it. */
#define LAW(condition)                                                                                 \
	do {                                                                                           \
		if (!(condition)) {                                                                    \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);        \
			abort();                                                                       \
		}                                                                                      \
	} while (0)

static inline uint32_t frames_of_owner(uint32_t owner)
{
	uint32_t n = 0;

	for (uint32_t frame = 0; frame < hostile.umem.frames; frame++)
		n += hostile.umem.owner[frame] == owner;
	return n;
}

static inline void check_places_agree(void)
{
	const struct xskd_umem *umem = &hostile.umem;
	uint32_t sum = umem->free_count + umem->held + umem->quarantined;
	bool seen[MOST_FRAMES] = { false };

	for (uint32_t i = 0; i < umem->free_count; i++) {
		LAW(umem->free[i] < umem->frames && !seen[umem->free[i]]);
		seen[umem->free[i]] = true;
	}
	LAW(frames_of_owner(OWNER_FREE) == umem->free_count);
	LAW(frames_of_owner(OWNER_HELD) == umem->held);
	LAW(frames_of_owner(OWNER_QUARANTINED) == umem->quarantined);
	for (uint32_t i = 0; i < hostile.forward.port_count; i++) {
		LAW(frames_of_owner(OWNER_RX_SIDE | i) == hostile.ports[i].port.rx_side);
		LAW(frames_of_owner(OWNER_TX_SIDE | i) == hostile.ports[i].port.tx_side);
		sum += hostile.ports[i].port.rx_side + hostile.ports[i].port.tx_side;
	}
	LAW(sum == umem->frames);
	LAW(*umem->intent == OPERATION_NONE);
}

static inline void check_entry(const struct hostile_port *port, int name, uint32_t index)
{
	const struct xskd_umem *umem = &hostile.umem;
	const struct xskd_ring *ring = &port->port.rings[name];
	const struct frames frames = frames_of(umem);

	if (name == XSKD_FILL) {
		const uint64_t addr = ((uint64_t *)ring->entries)[index & ring_mask(ring)];

		LAW(addr >> umem->frame_shift < umem->frames && (addr & frames.mask) == 0);
	} else {
		const struct xdp_desc *desc = (struct xdp_desc *)ring->entries + (index & ring_mask(ring));
		const uint32_t allowed = port->port.multi_buffer ? XDP_PKT_CONTD : 0;

		LAW(desc->addr >> umem->frame_shift < umem->frames && fits(&frames, desc->addr, desc->len));
		LAW(desc->len <= port->port.max_length && (desc->options & ~allowed) == 0);
	}
}

/* Our indices are where the other side sees them, and what lies behind them is right. */
static inline void check_submitted(struct hostile_port *port)
{
	for (int name = 0; name < XSKD_RINGS; name++) {
		const struct xskd_ring *ring = &port->port.rings[name];

		LAW(ring->own == (produces(name) ? *ring->producer : *ring->consumer));
		if (!produces(name))
			continue;
		if (ring->own - port->checked[name] > ring->size)
			port->checked[name] = ring->own - ring->size;
		for (; port->checked[name] != ring->own; port->checked[name]++)
			check_entry(port, name, port->checked[name]);
	}
}

static inline void check_grow(const void *now, const void *before, size_t from, size_t to)
{
	for (size_t at = from; at < to; at += sizeof(uint64_t))
		LAW(*(const uint64_t *)((const uint8_t *)now + at) >=
		    *(const uint64_t *)((const uint8_t *)before + at));
}

static inline void check_counters(void)
{
	const struct xskd_counters *now = hostile.counters, *before = &hostile.before;
	uint64_t in = 0, out = 0;

	check_grow(now, before, offsetof(struct xskd_counters, sequence), offsetof(struct xskd_counters, frames));
	check_grow(now, before, offsetof(struct xskd_counters, regimes_ns),
		   offsetof(struct xskd_counters, intent));
	for (uint32_t i = 0; i < hostile.forward.port_count; i++) {
		check_grow(&now->ports[i], &before->ports[i], 0, offsetof(struct xskd_port_counters, rx_rest));
		in += now->ports[i].rx_packets;
		out += now->ports[i].tx_packets;
		for (int reason = 0; reason < XSKD_DROPS; reason++)
			out += reason == XSKD_DROP_TX_REFUSED ? 0 : now->ports[i].drops[reason];
		for (int name = 0; name < XSKD_RINGS; name++)
			LAW(now->ports[i].ring_high_water[name] <= hostile.ports[i].port.rings[name].size);
		LAW(hostile.ports[i].port.wrong < XSKD_WRONG_ENTRIES || hostile.ports[i].port.error);
	}
	LAW(in - hostile.received == out - hostile.transmitted);
	memcpy(&hostile.before, now, offsetof(struct xskd_counters, ports) +
				     hostile.forward.port_count * sizeof(now->ports[0]));
}

static inline void check_laws(void)
{
	check_places_agree();
	for (uint32_t i = 0; i < hostile.forward.port_count; i++)
		check_submitted(&hostile.ports[i]);
	check_counters();
}

/* Is there a ring whose level no kernel can have made? */
static inline bool impossible(void)
{
	for (uint32_t i = 0; i < hostile.forward.port_count; i++)
		for (int name = 0; name < XSKD_RINGS; name++) {
			const struct xskd_ring *ring = &hostile.ports[i].port.rings[name];

			if (*ring->producer - *ring->consumer > ring->size)
				return true;
		}
	return false;
}

static inline bool finished(void)
{
	for (uint32_t i = 0; i < hostile.forward.port_count; i++)
		if (hostile.ports[i].port.error)
			return true;
	return false;
}

/* As xskd/worker.py does it: publish, run, and at an error leave. A supervisor starts the next one anew. */
static inline void work(void)
{
	const bool corrupt = impossible();
	int error;

	LAW(xskd_forward_publish(&hostile.forward) == 0);
	LAW(!corrupt || finished());
	hostile.calls = any_below(3);
	error = xskd_forward_run(&hostile.forward, any_below(4) * 10000);
	hostile.calls = WELL;
	LAW(!finished() || error);
	check_laws();
	if (error)
		hostile_begin();
}

#endif
