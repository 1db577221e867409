/* SPDX-License-Identifier: Apache-2.0
 *
 * Packets of several descriptors through the loop and the library's calls: whole or not at all, wherever something
 * cuts them; and everything that a kernel may get wrong about them. Kills are in test_kill.c.
 */
#include <errno.h>

#include "../../csrc/frames.h"
#include "../../csrc/ring.h"
#include "wire.h"

#define JUMBO 9018

static struct fake *jumbo(const struct fake_sizes *sizes, enum xskd_action action)
{
	struct fake *fake = wired(sizes, action);

	for (int i = 0; i < FAKE_PORTS; i++) {
		fake->ports[i].port.multi_buffer = 1;
		fake->ports[i].port.max_length = JUMBO;
		fake->ports[i].tx_budget = 1000;
	}
	return fake;
}

static uint32_t turn(struct fake *fake)
{
	return xskd_forward_turn(&fake->forward);
}

static uint64_t drops(const struct fake *fake, enum xskd_drop reason)
{
	EQUAL(drops_of(&fake->counters.ports[0]), fake->counters.ports[0].drops[reason]);
	return fake->counters.ports[0].drops[reason];
}

/* A descriptor of its own, in a frame that the kernel was given. */
static void part(struct fake *fake, uint32_t length, uint32_t options)
{
	CHECK(fake_deliver_odd(&fake->ports[0], FAKE_OFFSET, length, options));
}

static void parts(struct fake *fake, uint32_t n)
{
	while (n-- > 0)
		part(fake, 100, XDP_PKT_CONTD);
}

/* Whatever was on RX before, this passes. */
static void check_passes(struct fake *fake)
{
	uint32_t sent = fake->ports[1].sent;

	EQUAL(fake_deliver(&fake->ports[0], 1, JUMBO), 1);
	while (turn(fake))
		continue;
	EQUAL(fake->ports[1].sent, sent + 1);
	EQUAL(fake->counters.ports[0].rx_rest, 0);
}

/* ---- packets pass ------------------------------------------------------------------------------ */

/* One byte around each multiple of what a frame takes, from every place of the rings, mixed with small ones. */
static void pass(enum xskd_action action, uint32_t frame_size)
{
	struct fake_sizes sizes = usual;
	struct fake *fake;
	uint64_t packets = 0;

	sizes.frame_size = frame_size;
	fake = jumbo(&sizes, action);
	for (uint32_t multiple = 0; multiple * fake_usable(fake) <= JUMBO; multiple++) {
		for (uint32_t i = 0; i < 3; i++) {
			uint32_t length = multiple * fake_usable(fake) + i - 1;

			if (multiple == 0 || length > JUMBO)
				length = i ? JUMBO : 60;
			for (int again = 0; again < 30; again++) {
				packets += fake_deliver(&fake->ports[0], 2, length);
				packets += fake_deliver(&fake->ports[0], 1, 14 + packets % 60);
				packets += fake_deliver(&fake->ports[1], 1, length);
				turn(fake);
				check_conserved(fake);
				EQUAL(fake->ports[0].sent + fake->ports[1].sent, packets);
			}
		}
	}
	EQUAL(fake->counters.ports[0].rx_packets + fake->counters.ports[1].rx_packets, packets);
	EQUAL(fake->counters.ports[0].tx_packets + fake->counters.ports[1].tx_packets, packets);
	turn(fake);
	CHECK(fake->counters.ports[0].tx_completed > fake->counters.ports[0].tx_packets);
	done(fake);
}

TEST(connect_passes_all_lengths)
{
	pass(XSKD_UNCHANGED, 2048);
	pass(XSKD_UNCHANGED, 4096);
}

TEST(reflect_swaps_in_the_first_frame_only)
{
	pass(XSKD_SWAP_MACS, 2048);
	pass(XSKD_SWAP_MACS, 4096);
}

TEST(a_packet_is_counted_once)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *in = &fake->counters.ports[0], *out = &fake->counters.ports[1];

	fake_deliver(&fake->ports[0], 1, 9000);
	turn(fake);
	turn(fake);
	EQUAL(in->rx_packets, 1);
	EQUAL(in->rx_bytes, 9000);
	EQUAL(in->rx_batches[0], 1);
	EQUAL(out->tx_packets, 1);
	EQUAL(out->tx_bytes, 9000);
	EQUAL(out->tx_batches[0], 1);
	EQUAL(out->tx_completed, 6);    /* frames */
	done(fake);
}

TEST(as_many_descriptors_as_may_be)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);

	fake->ports[1].port.max_length = XSKD_MAX_FRAGMENTS * fake_usable(fake);
	fake_deliver(&fake->ports[0], 1, XSKD_MAX_FRAGMENTS * fake_usable(fake));
	turn(fake);
	EQUAL(fake->ports[1].sent, 1);
	done(fake);
}

/* ---- what cuts a packet -------------------------------------------------------------------------- */

TEST(the_end_of_a_burst)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);

	EQUAL(fake_deliver(&fake->ports[0], 12, 9000), 12);     /* 72 entries: ten packets and four entries */
	EQUAL(turn(fake) > 0, true);
	EQUAL(fake->counters.ports[0].rx_packets, 10);
	EQUAL(fake->ports[1].sent, 10);
	turn(fake);
	EQUAL(fake->ports[1].sent, 12);
	done(fake);
}

/* Room for n entries, for every n: what finds room goes, the next packet stays whole. */
TEST(a_tx_ring_with_too_little_room)
{
	for (uint32_t room = 1; room <= 64; room++) {
		struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);
		uint32_t expected = room / 6 * 6;

		fake->ports[1].tx_budget = 0;
		EQUAL(fake_deliver(&fake->ports[0], 64, 60), 64);
		turn(fake);
		EQUAL(fake_deliver(&fake->ports[0], 64 - room, 60), 64 - room);
		turn(fake);
		EQUAL(fake_deliver(&fake->ports[0], 11, 9000), 11);
		turn(fake);
		EQUAL(ring_used_by_producer(&fake->ports[1].port.rings[XSKD_TX]), 128 - room + expected);
		EQUAL(ring_used_by_consumer(&fake->ports[0].port.rings[XSKD_RX]), 66 - at_most(expected, 60));
		EQUAL(fake->counters.ports[0].tx_blocked, room < 6);
		fake->ports[1].tx_budget = 1000;
		for (int i = 0; i < 3; i++)
			turn(fake);
		EQUAL(fake->ports[1].sent, 128 - room + 11);
		done(fake);
	}
}

TEST(a_tx_ring_that_stays_full_drops_whole_packets)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);

	fake->ports[1].tx_budget = 0;
	for (int i = 0; i < 3; i++) {
		EQUAL(fake_deliver(&fake->ports[0], 9, 9000), 9);
		turn(fake);
	}
	EQUAL(fake->counters.ports[1].tx_packets, 21);          /* 126 of 128 entries */
	turn(fake);
	EQUAL(drops(fake, XSKD_DROP_TX_FULL), 0);
	fake->forward.now_ns += 21 * MS;
	turn(fake);
	EQUAL(drops(fake, XSKD_DROP_TX_FULL), 6);
	fake->ports[1].tx_budget = 1000;
	while (turn(fake))
		continue;
	EQUAL(fake->ports[1].sent, 21);
	check_passes(fake);
	done(fake);
}

/* A packet that will never find room is not waited for. */
TEST(a_tx_ring_shorter_than_the_packet)
{
	struct fake_sizes sizes = usual;
	struct fake *fake;

	sizes.tx = 4;
	fake = jumbo(&sizes, XSKD_UNCHANGED);
	EQUAL(fake_deliver(&fake->ports[0], 3, 9000), 3);
	EQUAL(fake_deliver(&fake->ports[0], 3, 60), 3);
	for (int i = 0; i < 6; i++)
		turn(fake);
	EQUAL(fake->ports[1].sent, 3);
	EQUAL(drops(fake, XSKD_DROP_FRAGMENTS), 3);
	done(fake);
}

/* ---- what may be wrong ---------------------------------------------------------------------------- */

TEST(each_bad_packet_has_one_reason)
{
	static const struct { uint32_t first, second, options; enum xskd_drop reason; uint32_t quarantined; } bad[] = {
		{ 13, 100, 0, XSKD_DROP_UNDERSIZE, 0 },         /* the addresses are not in one frame */
		{ 100, 0, 0, XSKD_DROP_INVALID, 1 },
		{ 100, 1793, 0, XSKD_DROP_INVALID, 1 },         /* leaves its frame */
		{ 100, 100, 2, XSKD_DROP_INVALID, 1 },          /* an option that we never asked for */
		{ 1793, 1793, 0, XSKD_DROP_INVALID, 2 },
		{ 0, 100, 0, XSKD_DROP_INVALID, 1 },
	};

	for (size_t i = 0; i < LENGTH(bad); i++) {
		struct fake *fake = jumbo(&usual, XSKD_SWAP_MACS);

		fake_deliver(&fake->ports[0], 2, 2000);
		part(fake, bad[i].first, XDP_PKT_CONTD);
		part(fake, bad[i].second, bad[i].options);
		fake_deliver(&fake->ports[0], 2, 2000);
		turn(fake);
		EQUAL(fake->ports[0].sent, 4);
		EQUAL(drops(fake, bad[i].reason), 1);
		EQUAL(fake->counters.ports[0].rx_packets, 5);
		EQUAL(fake->umem.quarantined, bad[i].quarantined);
		done(fake);
	}
}

TEST(what_is_too_long_is_dropped_whole)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);

	fake_deliver(&fake->ports[0], 1, JUMBO + 1);
	fake_deliver(&fake->ports[0], 1, JUMBO);
	turn(fake);
	EQUAL(drops(fake, XSKD_DROP_OVERSIZE), 1);
	EQUAL(fake->ports[1].sent, 1);
	done(fake);
}

TEST(the_same_frame_twice_in_a_packet)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);
	struct xskd_ring *rx = &fake->ports[0].port.rings[XSKD_RX];

	part(fake, 100, XDP_PKT_CONTD);
	part(fake, 100, XDP_PKT_CONTD);
	fake_deliver_raw(&fake->ports[0], ring_desc(rx, 0)->addr, 100, 0);
	turn(fake);
	EQUAL(drops(fake, XSKD_DROP_INVALID), 1);
	EQUAL(fake->ports[1].sent, 0);
	check_passes(fake);
	done(fake);
}

TEST(a_frame_that_was_never_given_in_a_packet)
{
	static const uint64_t wrong[] = { 0, 1ull << 40, UINT64_MAX };

	for (size_t i = 0; i < LENGTH(wrong); i++) {
		struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);
		uint64_t addr = wrong[i] ? wrong[i] : (uint64_t)fake->umem.free[0] << 11;

		part(fake, 100, XDP_PKT_CONTD);
		fake_deliver_raw(&fake->ports[0], addr, 100, 0);
		turn(fake);
		EQUAL(drops(fake, XSKD_DROP_INVALID), 1);
		check_passes(fake);
		done(fake);
	}
}

/* As many as it takes to run over every boundary there is: of what may be, of a burst, of the ring. */
TEST(too_many_descriptors)
{
	for (uint32_t n = XSKD_MAX_FRAGMENTS; n < 500; n += n % 7 + 1) {
		struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);

		fake_deliver(&fake->ports[0], 1, 2000);
		for (uint32_t i = 0; i < n; i++) {
			if (i % 50 == 49)
				turn(fake);
			parts(fake, 1);
		}
		for (int i = 0; i < 3; i++)
			turn(fake);
		EQUAL(fake->counters.ports[0].rx_rest, 1);
		part(fake, 100, 0);
		check_passes(fake);
		EQUAL(drops(fake, XSKD_DROP_FRAGMENTS), 1);
		EQUAL(fake->ports[1].sent, 2);
		EQUAL(fake->counters.ports[0].rx_bytes, 2000 + 100 * (n + 1) + JUMBO);
		done(fake);
	}
}

/* The kernel shows the beginning before the end: no harm if the end comes. */
TEST(a_packet_that_comes_in_parts)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);

	fake->on_wire = NULL;           /* each part has a number of its own here */
	for (int again = 0; again < 100; again++) {
		fake->forward.now_ns += 15 * MS;
		parts(fake, 3);
		EQUAL(turn(fake) && fake->ports[1].sent != fake->counters.ports[0].rx_packets, false);
		fake->forward.now_ns += 15 * MS;
		parts(fake, 3);
		turn(fake);
		part(fake, 50, 0);
		turn(fake);
		EQUAL(fake->ports[1].sent, again + 1);
	}
	EQUAL(fake->counters.ports[1].tx_bytes, 650 * 100);
	done(fake);
}

TEST(a_packet_whose_end_never_comes)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);

	parts(fake, 5);
	turn(fake);
	fake->forward.now_ns += 19 * MS;
	turn(fake);
	EQUAL(drops(fake, XSKD_DROP_FRAGMENTS), 0);
	fake->forward.now_ns += 2 * MS;
	turn(fake);
	EQUAL(drops(fake, XSKD_DROP_FRAGMENTS), 1);
	EQUAL(ring_used_by_consumer(&fake->ports[0].port.rings[XSKD_RX]), 0);
	parts(fake, 5);                 /* what comes late is still a part of it */
	part(fake, 100, 0);
	check_passes(fake);
	EQUAL(drops(fake, XSKD_DROP_FRAGMENTS), 1);
	EQUAL(fake->counters.ports[0].rx_packets, 2);
	done(fake);
}

TEST(an_rx_ring_that_is_full_of_one_packet)
{
	struct fake_sizes sizes = usual;
	struct fake *fake;

	sizes.rx = 8;
	fake = jumbo(&sizes, XSKD_UNCHANGED);
	parts(fake, 8);
	turn(fake);
	EQUAL(drops(fake, XSKD_DROP_FRAGMENTS), 1);
	part(fake, 100, 0);
	check_passes(fake);
	done(fake);
}

/* Chains of anything: the loop goes on, and no frame is missing. */
TEST(chains_of_anything)
{
	static const uint32_t lengths[] = { 100, 14, 13, 0, 1792, 1793, 60, 60, 60 };
	static const uint32_t options[] = { 1, 1, 1, 1, 1, 0, 0, 0, 2, 3 };
	uint64_t seed = 1;

	for (int i = 0; i < 200; i++) {
		struct fake *fake = jumbo(&usual, i % 2 ? XSKD_SWAP_MACS : XSKD_UNCHANGED);

		fake->on_wire = NULL;
		for (int step = 0; step < 400; step++) {
			seed = seed * 6364136223846793005ull + 1442695040888963407ull;
			if (seed >> 62)
				fake_deliver_odd(&fake->ports[0], FAKE_OFFSET, lengths[(seed >> 40) % LENGTH(lengths)],
						 options[(seed >> 50) % LENGTH(options)]);
			else
				turn(fake);
			if (seed >> 58 == 0)
				fake->forward.now_ns += 30 * MS;
			check_conserved(fake);
		}
		fake_free(fake);
	}
}

/* ---- receive and transmit ------------------------------------------------------------------------- */

TEST(receive_never_splits_a_packet)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);
	struct xdp_desc held[64];

	fake_deliver(&fake->ports[0], 3, 9000);
	EQUAL(xskd_receive(&fake->ports[0].port, held, 5), 0);
	EQUAL(xskd_receive(&fake->ports[0].port, held, 13), 12);
	for (int i = 0; i < 12; i++)
		EQUAL(held[i].options, i % 6 != 5);
	EQUAL(fake->counters.ports[0].rx_packets, 2);
	EQUAL(fake->counters.ports[0].rx_bytes, 18000);
	check_frames(fake);
	EQUAL(xskd_receive(&fake->ports[0].port, held + 12, 52), 6);
	EQUAL(xskd_umem_give(&fake->umem, held, 18), 18);
	check_frames(fake);
	fake_free(fake);
}

TEST(receive_passes_over_what_is_no_packet)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);
	struct xdp_desc held[64];

	parts(fake, 30);
	EQUAL(xskd_receive(&fake->ports[0].port, held, 64), 0);
	part(fake, 100, 0);
	part(fake, 100, XDP_PKT_CONTD);
	part(fake, 100, 4);
	fake_deliver(&fake->ports[0], 1, 5000);
	EQUAL(xskd_receive(&fake->ports[0].port, held, 64), 3);
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_FRAGMENTS], 1);
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_INVALID], 1);
	EQUAL(fake->umem.quarantined, 1);
	EQUAL(xskd_umem_give(&fake->umem, held, 3), 3);
	check_frames(fake);
	fake_free(fake);
}

TEST(transmit_never_splits_a_packet)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);
	struct xskd_port *out = &fake->ports[1].port;
	struct xdp_desc held[128];

	fake_deliver(&fake->ports[0], 15, 9000);
	EQUAL(xskd_receive(&fake->ports[0].port, held, 128), 90);
	EQUAL(xskd_transmit(out, held, 5), 0);                  /* its end is not among them */
	EQUAL(xskd_transmit(out, held, 11), 6);
	EQUAL(xskd_transmit(out, held + 6, 84), 84);
	EQUAL(fake->counters.ports[1].tx_packets, 15);
	EQUAL(fake->counters.ports[1].tx_bytes, 15 * 9000);
	xskd_refill(&fake->ports[0].port);
	fake_deliver(&fake->ports[0], 7, 9000);
	EQUAL(xskd_receive(&fake->ports[0].port, held, 128), 42);
	EQUAL(xskd_transmit(out, held, 42), 36);                /* room for 38 */
	EQUAL(xskd_umem_give(&fake->umem, held + 36, 6), 6);
	EQUAL(fake_send(&fake->ports[1], 100), 21);
	check_frames(fake);
	fake_free(fake);
}

TEST(transmit_stops_at_what_cannot_be_sent)
{
	struct fake *fake = jumbo(&usual, XSKD_UNCHANGED);
	struct xskd_port *out = &fake->ports[1].port;
	struct xdp_desc held[XSKD_MAX_FRAGMENTS + 1];

	fake->on_wire = NULL;
	EQUAL(xskd_umem_take(&fake->umem, held, LENGTH(held)), LENGTH(held));
	for (uint32_t i = 0; i < LENGTH(held); i++)
		held[i].len = 100, held[i].options = XDP_PKT_CONTD;
	held[XSKD_MAX_FRAGMENTS].options = 0;
	EQUAL(xskd_transmit(out, held, LENGTH(held)), 0);       /* one too many */
	held[1].options = 2;
	EQUAL(xskd_transmit(out, held, 2), 0);
	held[1].options = 0;
	held[1].len = 0;
	EQUAL(xskd_transmit(out, held, 2), 0);
	held[1] = held[0];
	held[1].options = 0;
	EQUAL(xskd_transmit(out, held, 2), 0);                  /* the same frame twice */
	held[0].len = 13;
	EQUAL(xskd_transmit(out, held, 1), 0);
	held[0].len = 1500;
	out->max_length = 1514;
	held[2].options = 0;
	held[1] = held[2];
	held[1].len = 15;
	EQUAL(xskd_transmit(out, held, 2), 0);                  /* too long together */
	held[1].len = 14;
	EQUAL(xskd_transmit(out, held, 2), 2);
	EQUAL(fake->umem.held, LENGTH(held) - 2);
	fake_send(&fake->ports[1], 1);
	fake_free(fake);
}

/* A socket without multi-buffer takes neither. */
TEST(without_multi_buffer_every_option_is_refused)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct xdp_desc held;

	EQUAL(xskd_umem_take(&fake->umem, &held, 1), 1);
	held.len = 60;
	held.options = XDP_PKT_CONTD;
	EQUAL(xskd_transmit(&fake->ports[1].port, &held, 1), 0);
	EQUAL(xskd_umem_give(&fake->umem, &held, 1), 1);
	part(fake, 60, XDP_PKT_CONTD);
	EQUAL(xskd_receive(&fake->ports[0].port, &held, 1), 0);
	EQUAL(drops(fake, XSKD_DROP_INVALID), 1);
	fake_free(fake);
}
