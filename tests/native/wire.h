/* SPDX-License-Identifier: Apache-2.0
 *
 * The wire behind the fake kernel: looks at every byte of every packet that leaves, and at their order.
 */
#ifndef WIRE_H
#define WIRE_H

#include "routed.h"
#include "scene.h"

/* No packet older than this may leave by that port any more; in route: none that came by that other one. */
static uint32_t wire_next[FAKE_MOST_PORTS][FAKE_MOST_PORTS];

static inline void wire_check_order(const struct fake_port *port, uint32_t from, uint32_t number)
{
	uint32_t *next = &wire_next[port->port.index][from];

	CHECK(number >= *next && number < port->fake->delivered);
	*next = number + 1;
}

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
	wire_check_order(port, 0, number);
	for (uint32_t i = 0; i < length; i++)
		EQUAL(packet[i], fake_byte(number, wire_origin(port->fake, i)));
}

/* One hop further, by the port that the metadata said, and otherwise as it came. */
static inline void wire_look_routed(struct fake_port *port, const uint8_t *packet, uint32_t length)
{
	struct routed arrived;
	static uint8_t wanted[FAKE_LONGEST];

	routed_read(packet, &arrived);
	CHECK(arrived.from < port->fake->forward.port_count && length <= port->port.max_length);
	EQUAL(arrived.egress, port->port.index);
	wire_check_order(port, arrived.from, arrived.number);
	routed_write(&arrived, length, 1, wanted);
	for (uint32_t i = 0; i < length; i++)
		EQUAL(packet[i], wanted[i]);
}

static inline struct fake *wired(const struct fake_sizes *sizes, enum xskd_action action)
{
	struct fake *fake = ready(sizes, action);

	fake->on_wire = action == XSKD_ROUTE ? wire_look_routed : wire_look;
	fake->on_arrival = action == XSKD_ROUTE ? routed_arrival : NULL;
	fake->forward.now_ns = fake->now_ns;
	memset(wire_next, 0, sizeof(wire_next));
	return fake;
}

#endif
