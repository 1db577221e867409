/* SPDX-License-Identifier: Apache-2.0
 *
 * A model of everything at once: a seeded random walk over what a kernel, good or broken, and a user of the
 * library may do, 400,000 steps in all. After each few: every frame in one place, every packet accounted for.
 */
#include <errno.h>

#include "../../csrc/ring.h"
#include "wire.h"

#define WALKS 100
#define STEPS 2000

static uint64_t seed;

static uint32_t random_below(uint32_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)((seed >> 16) % n);
}

/* What the library calls did, which is not the loop's account. */
struct library {
	struct xdp_desc held[256];
	uint32_t count;
	uint64_t received, transmitted;
};

static uint32_t random_length(const struct fake_port *port)
{
	static const uint32_t lengths[] = { 60, 60, 60, 64, 14, 1514, 1518, 13, 1519, 0, 1700, 100 };

	if (port->port.multi_buffer && random_below(2))
		return 1000 + random_below(9000);
	return lengths[random_below(LENGTH(lengths))];
}

static bool empty(const struct fake_port *port, enum xskd_ring_name ring)
{
	return port->kernel[ring] == port->consumer[ring];
}

/* A frame that is not with `side` and cannot get there before the next entry of that ring is read: only
 * such a lie can be told from the truth. */
static uint64_t random_addr_not_of(const struct fake *fake, uint8_t side)
{
	for (int tries = 0; tries < 100; tries++) {
		uint32_t frame = random_below(fake->umem.frames);
		uint8_t owner = fake->umem.owner[frame];

		if (owner != side && !(owner & 0x80))
			return (uint64_t)frame << fake->umem.frame_shift | random_below(fake->umem.frame_size);
	}
	return seed | 1ull << 63;
}

/* An address that the kernel invented, on an empty ring, read at once. */
static void kernel_invents(struct fake *fake, struct fake_port *port)
{
	struct xdp_desc held;

	if (random_below(2) && empty(port, XSKD_COMPLETION)) {
		fake_complete_raw(port, random_addr_not_of(fake, (uint8_t)TX_OWNER(port)));
		xskd_forward_turn(&fake->forward);
		CHECK(port->port.counters->completion_invalid);
	} else if (empty(port, XSKD_RX) && !port->port.counters->rx_rest) {
		uint64_t nowhere = seed | 1ull << 63;
		bool by_loop = random_below(2);

		fake_deliver_raw(port, by_loop ? nowhere : random_addr_not_of(fake, (uint8_t)RX_OWNER(port)),
				 random_length(port), random_below(2) && !port->port.multi_buffer);
		if (by_loop)
			xskd_forward_turn(&fake->forward);
		EQUAL(xskd_receive(&port->port, &held, 1), 0);  /* the loop leaves it there if TX is full */
		CHECK(port->port.counters->drops[XSKD_DROP_INVALID]);
	}
}

static void kernel_lies(struct fake *fake, struct fake_port *port)
{
	switch (random_below(4)) {
	case 0:
		fake_deliver_odd(port, 2047 - random_below(59), 60, 0);
		break;
	case 1:
		fake_deliver_odd(port, FAKE_OFFSET, 60, random_below(3));
		break;
	default:
		kernel_invents(fake, port);
	}
}

static void kernel_changes(struct fake_port *port)
{
	static const int answers[] = { 0, EAGAIN, EBUSY, ENOBUFS, ENETDOWN };
	static const uint32_t budgets[] = { 0, 1, 8, 32, 64, 1000 };

	switch (random_below(5)) {
	case 0:
		port->tx_budget = budgets[random_below(LENGTH(budgets))];
		break;
	case 1:
		if (port->answers_count - port->answered < FAKE_ANSWERS)
			fake_answer(port, answers[random_below(LENGTH(answers))]);
		break;
	case 2:
		port->flags[XSKD_TX] = port->flags[XSKD_FILL] = random_below(2);
		break;
	case 3:
		port->prefetch = random_below(100);
		break;
	default:
		port->fill_late = random_below(20);
	}
}

static uint32_t packets_among(const struct xdp_desc *held, uint32_t n)
{
	uint32_t packets = 0;

	while (n-- > 0)
		packets += held[n].options == 0;
	return packets;
}

static void library_acts(struct fake *fake, struct fake_port *port, struct library *library)
{
	uint32_t room = (uint32_t)LENGTH(library->held) - library->count, n;
	struct xdp_desc *top = library->held + library->count;

	switch (random_below(4)) {
	case 0:
		library->count += xskd_umem_take(&fake->umem, top, random_below(room + 1) % 8);
		break;
	case 1:
		n = xskd_receive(&port->port, top, random_below(room + 1) % 20);
		library->received += packets_among(top, n);
		library->count += n;
		break;
	case 2:
		n = random_below(library->count + 1);
		EQUAL(xskd_umem_give(&fake->umem, top - n, n), n);
		EQUAL(xskd_umem_give(&fake->umem, top - n, n), 0);
		library->count -= n;
		break;
	default:
		xskd_complete(&port->port);
		xskd_refill(&port->port);
	}
}

/* Only what was received has content that the wire will accept, and MACs as the wire expects them. */
static void library_transmits(struct fake_port *port, struct library *library)
{
	struct xdp_desc *desc = &library->held[library->count - 1];
	uint64_t before = port->port.counters->tx_packets;

	if (xskd_transmit(&port->port, desc, 1)) {
		library->count--;
		library->transmitted++;
	}
	EQUAL(port->port.counters->tx_packets - before, library->held + library->count == desc);
}

static void step(struct fake *fake, struct library *library)
{
	struct fake_port *port = &fake->ports[random_below(fake->forward.port_count)];
	uint32_t what = random_below(100);

	if (what < 30)
		fake_deliver(port, random_below(80), random_length(port));
	else if (what < 70)
		xskd_forward_turn(&fake->forward);
	else if (what < 78)
		fake_send(port, random_below(100));
	else if (what < 81)
		kernel_lies(fake, port);
	else if (what < 88)
		kernel_changes(port);
	else if (what < 93)
		fake->forward.now_ns += random_below(10) * MS;
	else if (what < 98)
		library_acts(fake, port, library);
	else if (library->count)
		library_transmits(port, library);
}

static void check_packets(struct fake *fake, const struct library *library)
{
	uint64_t in = 0, out = 0;

	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		const struct xskd_port_counters *counters = &fake->counters.ports[i];

		in += counters->rx_packets;
		out += counters->tx_packets + drops_of(counters);
	}
	EQUAL(in - library->received, out - library->transmitted);
}

/* Every packet still somewhere is brought home: what is sent was completed, and no frame is missing. */
static void drain(struct fake *fake, struct library *library)
{
	EQUAL(xskd_umem_give(&fake->umem, library->held, library->count), library->count);
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		fake->ports[i].flags[XSKD_TX] = XDP_RING_NEED_WAKEUP;
		fake->ports[i].answered = fake->ports[i].answers_count;
		fake->ports[i].tx_budget = 64;
		fake->ports[i].fill_late = 0;
		fake_take_fill(&fake->ports[i], 0);
	}
	for (int i = 0; i < 50; i++) {
		xskd_forward_turn(&fake->forward);
		fake->forward.now_ns += MS;     /* for packets without an end, and ports that were down */
	}
	check_frames(fake);
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		EQUAL(fake->ports[i].port.tx_side, 0);
		if (!fake->ports[i].port.multi_buffer)
			EQUAL(fake->counters.ports[i].tx_completed, fake->counters.ports[i].tx_packets);
		EQUAL(ring_used_by_consumer(&fake->ports[i].port.rings[XSKD_RX]), 0);
		EQUAL(fake->ports[i].sent + fake->counters.ports[i].drops[XSKD_DROP_TX_REFUSED],
		      fake->counters.ports[i].tx_packets);
	}
	check_at_home(fake);
}

static void walk(uint64_t number, enum xskd_action action, bool several)
{
	struct fake_sizes sizes = { .frame_size = 2048 };
	struct library library = { .count = 0 };
	struct fake *fake;

	seed = 0x9e3779b97f4a7c15ull * (number + 1);
	sizes.frames = 50 + random_below(1000);
	sizes.fill = 16u << random_below(5);
	sizes.rx = 16u << random_below(5);
	sizes.tx = 16u << random_below(5);
	sizes.completion = 16u << random_below(5);
	sizes.start = random_below(2) ? UINT32_MAX - random_below(5000) : (uint32_t)seed;
	fake = wired(&sizes, action);
	/* Library and loop overtake each other: the order is checked where only the loop sends. */
	fake->on_wire = NULL;
	for (int i = 0; i < FAKE_PORTS && several; i++) {
		fake->ports[i].port.multi_buffer = 1;
		fake->ports[i].port.max_length = 9018;
	}
	for (int i = 0; i < STEPS; i++) {
		step(fake, &library);
		if (i % 8 == 0) {
			check_frames(fake);
			check_packets(fake, &library);
		}
	}
	drain(fake, &library);
	check_packets(fake, &library);
	fake_free(fake);
}

TEST(random_walks_of_connect)
{
	for (uint64_t number = 0; number < WALKS / 2; number++)
		walk(number, XSKD_UNCHANGED, false);
}

TEST(random_walks_of_reflect)
{
	for (uint64_t number = WALKS / 2; number < WALKS; number++)
		walk(number, XSKD_SWAP_MACS, false);
}

TEST(random_walks_of_packets_of_several_descriptors)
{
	for (uint64_t number = WALKS; number < 2 * WALKS; number++)
		walk(number, number % 2 ? XSKD_SWAP_MACS : XSKD_UNCHANGED, true);
}

TEST(random_walks_of_route)
{
	for (uint64_t number = WALKS; number < WALKS * 3 / 2; number++)
		walk(number, XSKD_ROUTE, false);
}

TEST(random_walks_of_route_of_packets_of_several_descriptors)
{
	for (uint64_t number = WALKS * 3 / 2; number < 2 * WALKS; number++)
		walk(number, XSKD_ROUTE, true);
}
