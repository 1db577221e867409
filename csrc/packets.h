/* SPDX-License-Identifier: Apache-2.0
 *
 * Packets of several descriptors (multi-buffer, sockets bound with XDP_USE_SG): what forward.c and port.c do for
 * packets of one, on ports whose `multi_buffer` is set. See packets.c.
 */
#ifndef XSKD_PACKETS_H
#define XSKD_PACKETS_H

#include "frames.h"
#include "ring.h"

/* The part of a descriptor that must be right by itself: as length_of, but that a packet may go on after it. */
static inline uint64_t part_of(const struct xdp_desc *desc)
{
	return desc->len | (uint64_t)(desc->options & ~XDP_PKT_CONTD) << 32;
}

/* Descriptors of the packet that begins `offset` entries after our index, of `n` entries there; 0: its end is
 * not among them, or not among as many as a packet may have. */
static inline uint32_t packet_at(const struct xskd_ring *ring, uint32_t offset, uint32_t n)
{
	const uint32_t most = at_most(n, XSKD_MAX_FRAGMENTS);

	for (uint32_t i = 0; i < most; i++)
		if (!continues(ring_desc(ring, offset + i)))
			return i + 1;
	return 0;
}

/* One burst of the loop, as forward_burst and copied_burst. Returns the entries taken from RX. */
uint32_t packets_burst(const struct xskd_forward *forward, struct xskd_port *in, struct xskd_port *out);
/* Of n entries at least 1: by which port each leaves, as far as there are whole packets. Returns those entries; 0:
 * none, and `taken` from RX were no packet. */
uint32_t packets_look(const struct xskd_forward *forward, struct xskd_port *in, uint32_t n, uint8_t *egress,
		      uint32_t *taken);
/* The next n entries, which leave by `out`, or NULL: nowhere. Returns those taken from RX, 0 if TX is full. */
uint32_t packets_run(const struct xskd_forward *forward, struct xskd_port *in, struct xskd_port *out, uint32_t n);
/* As xskd_receive and xskd_transmit: whole packets only. Return the number of frames. */
uint32_t packets_receive(struct xskd_port *port, struct xdp_desc *held, uint32_t wanted);
uint32_t packets_transmit(struct xskd_port *port, const struct xdp_desc *held, uint32_t n);

#endif
