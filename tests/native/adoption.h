/* SPDX-License-Identifier: Apache-2.0
 *
 * What a successor's tests have in common: what dies with a worker, and where the kernel, by its own record,
 * has every frame.
 */
#ifndef ADOPTION_H
#define ADOPTION_H

#include "../../csrc/frames.h"
#include "../../csrc/ring.h"
#include "wire.h"

#define GARBAGE 0xa5a5a5a5u

/* A worker ends. What it kept for itself is not just gone but wrong. */
static inline void forget(struct fake *fake)
{
	struct xskd_umem *umem = &fake->umem;

	for (uint32_t frame = 0; frame < umem->frames; frame++)
		umem->free[frame] = GARBAGE;
	umem->free_count = umem->quarantined = umem->held = GARBAGE;
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		struct xskd_port *port = &fake->ports[i].port;

		for (int name = 0; name < XSKD_RINGS; name++)
			port->rings[name].own = GARBAGE;
		port->rx_side = port->tx_side = port->refilled = GARBAGE;
		port->blocked_since_ns = port->unfinished_since_ns = GARBAGE;
		port->error = -1;
	}
}

/* The kernel says that a frame is there: nobody else may, and its owner byte must say the same. */
static inline void claim(const struct fake *fake, uint8_t *claimed, uint64_t addr, uint8_t owner)
{
	uint64_t frame = addr >> fake->umem.frame_shift;

	CHECK(frame < fake->umem.frames);
	EQUAL(fake->umem.owner[frame], owner);
	EQUAL(claimed[frame], 0);
	claimed[frame] = 1;
}

static inline void claim_ring(const struct fake_port *port, enum xskd_ring_name name, uint32_t from,
			      uint32_t to, uint8_t *claimed)
{
	const struct xskd_ring *ring = &port->port.rings[name];
	const bool rx_side = name == XSKD_FILL || name == XSKD_RX;

	for (uint32_t i = from; i != to; i++) {
		uint64_t addr = name == XSKD_RX || name == XSKD_TX ?
					((struct xdp_desc *)ring->entries)[i & ring_mask(ring)].addr :
					((uint64_t *)ring->entries)[i & ring_mask(ring)];

		claim(port->fake, claimed, addr, (uint8_t)(rx_side ? RX_OWNER(port) : TX_OWNER(port)));
	}
}

static inline void claim_port(const struct fake_port *port, uint8_t *claimed)
{
	for (uint32_t i = 0; i < port->in_kernel_count; i++)
		claim(port->fake, claimed, port->in_kernel[i], (uint8_t)RX_OWNER(port));
	claim_ring(port, XSKD_FILL, port->kernel[XSKD_FILL], port->producer[XSKD_FILL], claimed);
	claim_ring(port, XSKD_RX, port->consumer[XSKD_RX], port->producer[XSKD_RX], claimed);
	claim_ring(port, XSKD_TX, port->kernel[XSKD_TX], port->producer[XSKD_TX], claimed);
	claim_ring(port, XSKD_COMPLETION, port->consumer[XSKD_COMPLETION], port->producer[XSKD_COMPLETION],
		   claimed);
}

/* Every frame in exactly one place: where the kernel has it, or on the free stack, or quarantined. */
static inline void check_places(struct fake *fake)
{
	uint8_t claimed[8192] = { 0 };

	CHECK(fake->umem.frames <= sizeof(claimed));
	check_frames(fake);
	EQUAL(fake->umem.held, 0);
	for (int i = 0; i < (int)fake->forward.port_count; i++)
		claim_port(&fake->ports[i], claimed);
	for (uint32_t i = 0; i < fake->umem.free_count; i++)
		claim(fake, claimed, (uint64_t)fake->umem.free[i] << fake->umem.frame_shift, OWNER_FREE);
	for (uint32_t frame = 0; frame < fake->umem.frames; frame++)
		EQUAL(claimed[frame], fake->umem.owner[frame] != OWNER_QUARANTINED);
}

/* The kernel sends all it has, the successor's loop turns until nothing moves: all frames come home. */
static inline void bring_home(struct fake *fake)
{
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		fake->ports[i].flags[XSKD_TX] = XDP_RING_NEED_WAKEUP;
		fake->ports[i].tx_budget = 64;
		fake->ports[i].fill_late = 0;
		fake_take_fill(&fake->ports[i], 0);
	}
	for (int idle = 0; idle < 2; idle++)    /* a turn sends what the next one completes */
		while (xskd_forward_turn(&fake->forward))
			idle = 0;
	check_places(fake);
	EQUAL(fake->counters.frames_in[XSKD_PLACE_RX], 0);
	check_at_home(fake);
}

/* A new worker where the last one ended, if that left nothing that contradicts itself. */
static inline struct xskd_adoption adopt(struct fake *fake)
{
	struct xskd_adoption report;

	forget(fake);
	EQUAL(xskd_forward_adopt(&fake->forward, &report), 0);
	EQUAL(report.quarantined, 0);
	EQUAL(*fake->umem.intent, 0);
	check_places(fake);
	return report;
}

#endif
