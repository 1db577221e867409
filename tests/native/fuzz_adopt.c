/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer against adoption: a page and rings that hold anything, as a worker that went mad, a kernel that did, or
 * a page of something else would leave them. They are adopted, and then all laws hold from there on, or refused,
 * and then nothing shared has been changed.
 */
#include "laws.h"

/* One byte says what a slot holds: which frame, where in it, and whether the packet goes on. */
static void any_slots(struct hostile_port *port, int name)
{
	const struct xskd_ring *ring = &port->port.rings[name];

	for (uint32_t i = 0; i < ring->size; i++) {
		const uint8_t says = any_byte();
		const uint64_t frame = (says & 0x3f) % (hostile.umem.frames + 1);
		const uint64_t addr = (frame << hostile.umem.frame_shift) + (says & 0x40 ? FAKE_OFFSET : 0);

		if (name == XSKD_RX || name == XSKD_TX)
			((struct xdp_desc *)ring->entries)[i] = (struct xdp_desc){
				.addr = addr, .len = 60, .options = says & 0x80 ? XDP_PKT_CONTD : 0,
			};
		else
			((uint64_t *)ring->entries)[i] = addr;
	}
}

/* Indices that may be, or that may not. */
static void any_indices(struct hostile_port *port, int name)
{
	struct xskd_ring *ring = &port->port.rings[name];

	*ring->consumer = (uint32_t)any_number(1 + 3 * any_below(2));
	*ring->producer = *ring->consumer + any_below(ring->size + (any_below(8) == 7) + 1);
	ring->own = 0xa5a5a5a5;
}

static uint8_t any_owner(void)
{
	static const uint8_t owners[] = { OWNER_FREE, OWNER_HELD, OWNER_QUARANTINED, OWNER_SENDING, OWNER_SEEN,
					  OWNER_RX_SIDE, OWNER_TX_SIDE };
	const uint8_t says = any_byte();
	const uint8_t owner = owners[(says & 0xf) % SIZE_OF(owners)];

	if (says == 0xff)
		return any_byte();
	return owner & (OWNER_RX_SIDE | OWNER_TX_SIDE) ? (uint8_t)(owner | says >> 6) : owner;
}

static void any_intent(void)
{
	const uint64_t operation = any_below(OPERATIONS + 1), from = any_below(4), to = any_below(4);
	const struct xskd_port *port = &hostile.ports[to % hostile.forward.port_count].port;
	const uint32_t fill = *port->rings[XSKD_FILL].producer, tx = *port->rings[XSKD_TX].producer;
	const bool to_fill = operation == OPERATION_RECYCLE || operation == OPERATION_REFILL;
	const uint32_t index = (to_fill ? fill : tx) - (any_below(8) == 7 ? (uint32_t)any_number(4) : any_below(32));

	*hostile.umem.intent = operation ? (uint64_t)index << INTENT_INDEX | to << INTENT_TO |
					   from << INTENT_FROM | operation : any_below(2);
	if (any_below(16) == 15)
		*hostile.umem.intent = any_number(8);
}

/* Either all of it is anything, or a worker has worked for a while and some of it has changed. */
static void any_state(void)
{
	const bool all = any_below(2);

	for (uint32_t n = all ? 0 : any_below(16); n > 0; n--) {
		kernel_acts();
		xskd_forward_turn(&hostile.forward);
	}
	for (uint32_t i = 0; i < hostile.forward.port_count; i++) {
		hostile.ports[i].port.counters->rx_rest = any_below(2);
		for (int name = 0; name < XSKD_RINGS && (all || any_below(4) == 3); name++) {
			any_slots(&hostile.ports[i], name);
			any_indices(&hostile.ports[i], name);
		}
	}
	for (uint32_t n = all ? hostile.umem.frames : any_below(8); n > 0; n--)
		hostile.umem.owner[all ? n - 1 : any_below(hostile.umem.frames)] = any_owner();
	if (all || any_below(2))
		any_intent();
}

/* All that outlives a worker, as one number. */
static uint64_t shared_state(void)
{
	uint64_t state = *hostile.umem.intent;

	for (uint32_t frame = 0; frame < hostile.umem.frames; frame++)
		state = state * 31 + hostile.umem.owner[frame];
	for (uint32_t i = 0; i < hostile.forward.port_count; i++) {
		state = state * 31 + hostile.ports[i].port.counters->rx_rest;
		for (int name = 0; name < XSKD_RINGS; name++) {
			const struct xskd_ring *ring = &hostile.ports[i].port.rings[name];

			state = (state * 31 + *ring->producer) * 31 + *ring->consumer;
		}
	}
	return state;
}

/* What the dead worker submitted is not ours to answer for, and the kernel goes on wherever the rings are. */
static void go_on_from_here(void)
{
	for (uint32_t i = 0; i < hostile.forward.port_count; i++) {
		struct hostile_port *port = &hostile.ports[i];

		for (int name = 0; name < XSKD_RINGS; name++) {
			port->checked[name] = port->port.rings[name].own;
			port->kernel[name] = *theirs(port, name);
		}
	}
	hostile.before = *hostile.counters;
	hostile.received = hostile.transmitted = 0;
	for (uint32_t i = 0; i < hostile.forward.port_count; i++) {
		const struct xskd_port_counters *counters = hostile.ports[i].port.counters;

		hostile.received += counters->rx_packets - counters->tx_packets;
		for (int reason = 0; reason < XSKD_DROPS; reason++)
			hostile.received -= reason == XSKD_DROP_TX_REFUSED ? 0 : counters->drops[reason];
	}
	check_laws();
}

/* Whatever the first one found and did, a second one has nothing to do. */
static void adopt_twice(void)
{
	struct xskd_adoption first, second;
	const uint64_t before = shared_state();
	const int error = xskd_forward_adopt(&hostile.forward, &first);

	LAW(error == 0 || error == EBADMSG);
	if (error) {
		LAW(shared_state() == before);
		hostile_begin();
		go_on_from_here();
		return;
	}
	go_on_from_here();
	LAW(xskd_forward_adopt(&hostile.forward, &second) == 0);
	LAW(second.waiting == first.waiting && second.unsent == first.unsent);
	LAW(second.skipped == 0 && second.undone == 0 && second.freed == 0 && second.quarantined == 0);
	go_on_from_here();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	hostile_new(data, size);
	hostile_begin();
	any_state();
	adopt_twice();
	while (hostile.at < hostile.end) {
		kernel_acts();
		work();
	}
	hostile_free();
	return 0;
}
