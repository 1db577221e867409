/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of ports, loop and model have in common: a fake kernel of usual sizes, and the law that
 * holds after whatever a test did.
 */
#ifndef SCENE_H
#define SCENE_H

#include "check.h"
#include "fake_kernel.h"

#define MS 1000000ull
#define US 1000ull

#define RX_OWNER(port) (0x40u | (port)->port.index)     /* owner bytes, see csrc/frames.h */
#define TX_OWNER(port) (0x80u | (port)->port.index)

/* Rings of 128, twice a burst, so that each third burst runs over an end; indices wrap at once. */
static const struct fake_sizes usual = { .frames = 1024, .frame_size = 2048, .fill = 128, .rx = 128,
					 .tx = 128, .completion = 128, .start = UINT32_MAX - 40 };

/* FILL full, as at the start of a worker. */
static inline struct fake *ready(const struct fake_sizes *sizes, enum xskd_action action)
{
	struct fake *fake = fake_new(sizes, action);

	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		xskd_refill(&fake->ports[i].port);
		fake->ports[i].port.refilled = 0;
	}
	return fake;
}

/* A TX that was refused by the driver has been counted as sent before. */
static inline uint64_t drops_of(const struct xskd_port_counters *counters)
{
	uint64_t n = 0;

	for (int reason = 0; reason < XSKD_DROPS; reason++)
		n += reason == XSKD_DROP_TX_REFUSED ? 0 : counters->drops[reason];
	return n;
}

/* Every frame in one place, by xskd's own accounts and by the kernel's. */
static inline void check_frames(struct fake *fake)
{
	EQUAL(xskd_forward_audit(&fake->forward), 0);
	EQUAL(xskd_forward_publish(&fake->forward), 0);
	EQUAL(fake->counters.frames_unaccounted, 0);
	EQUAL(fake->counters.sequence % 2, 0);
	EQUAL(fake->violations, 0);
}

/* Nothing is on its way: all frames are free, or with the kernel to receive into. */
static inline void check_at_home(const struct fake *fake)
{
	uint32_t frames = fake->umem.free_count + fake->umem.quarantined;

	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		EQUAL(fake->ports[i].port.tx_side, 0);
		frames += fake->ports[i].port.rx_side;
	}
	EQUAL(frames, fake->umem.frames);
}

/* And what came in went out, or was dropped for one reason. For tests of the loop alone. */
static inline void check_conserved(struct fake *fake)
{
	uint64_t in = 0, out = 0;

	check_frames(fake);
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		in += fake->counters.ports[i].rx_packets;
		out += fake->counters.ports[i].tx_packets + drops_of(&fake->counters.ports[i]);
	}
	EQUAL(in, out);
}

static inline void done(struct fake *fake)
{
	check_conserved(fake);
	fake_free(fake);
}

#endif
