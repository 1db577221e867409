/* SPDX-License-Identifier: Apache-2.0
 *
 * The wire behind the fake kernel: looks at every byte of every packet that leaves, and at their order.
 */
#ifndef WIRE_H
#define WIRE_H

#include "scene.h"

static uint32_t wire_next[FAKE_PORTS];  /* no packet older than this may leave by that port any more */

/* Where the byte that leaves at `offset` stood when it arrived. */
static inline uint32_t wire_origin(const struct fake *fake, uint32_t offset)
{
	if (fake->forward.action != XSKD_SWAP_MACS || offset >= 12)
		return offset;
	return offset < 6 ? offset + 6 : offset - 6;
}

static inline void wire_look(struct fake_port *port, const uint8_t *packet, uint32_t length)
{
	const uint8_t *at = packet + (port->fake->forward.action == XSKD_SWAP_MACS ? 6 : 0);
	uint32_t number = at[0] | at[1] << 8 | at[2] << 16 | (uint32_t)at[3] << 24;

	CHECK(length >= 14 && length <= port->port.max_length);
	CHECK(number >= wire_next[port->port.index] && number < port->fake->delivered);
	wire_next[port->port.index] = number + 1;
	for (uint32_t i = 0; i < length; i++)
		EQUAL(packet[i], fake_byte(number, wire_origin(port->fake, i)));
}

static inline struct fake *wired(const struct fake_sizes *sizes, enum xskd_action action)
{
	struct fake *fake = ready(sizes, action);

	fake->on_wire = wire_look;
	fake->forward.now_ns = fake->now_ns;
	memset(wire_next, 0, sizeof(wire_next));
	return fake;
}

#endif
