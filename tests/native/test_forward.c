/* SPDX-License-Identifier: Apache-2.0
 *
 * Turns of the loop: packets arrive, one turn, packets leave; and everything that may be wrong with them.
 */
#include <errno.h>

#include "wire.h"

static uint32_t turn(struct fake *fake)
{
	return xskd_forward_turn(&fake->forward);
}

static void check_drops(const struct fake *fake, int port, enum xskd_drop reason, uint64_t wanted)
{
	EQUAL(fake->counters.ports[port].drops[reason], wanted);
	if (reason != XSKD_DROP_TX_REFUSED)
		EQUAL(drops_of(&fake->counters.ports[port]), wanted);
}

/* ---- packets pass ------------------------------------------------------------------------------ */

/* Every burst size, both ports at once, rings of several sizes, indices from everywhere: each packet that
 * comes leaves in the same turn, in order, byte-exact. */
static void pass(enum xskd_action action)
{
	static const uint32_t starts[] = { 0, 0x7fffffc0u, UINT32_MAX - 300, UINT32_MAX };
	static const uint32_t ring_sizes[] = { 64, 128, 2048 };
	static const uint32_t lengths[] = { 60, 14, 64, 1514, 1518, 15 };

	for (size_t i = 0; i < LENGTH(starts) * LENGTH(ring_sizes); i++) {
		uint32_t size = ring_sizes[i / LENGTH(starts)];
		const struct fake_sizes sizes = {
			.frames = 8 * size, .frame_size = 2048, .fill = size, .rx = size, .tx = size,
			.completion = size, .start = starts[i % LENGTH(starts)],
		};
		struct fake *fake = wired(&sizes, action);

		for (uint32_t n = 1; n <= XSKD_BURST; n++) {
			EQUAL(fake_deliver(&fake->ports[0], n, lengths[n % LENGTH(lengths)]), n);
			EQUAL(fake_deliver(&fake->ports[1], n / 2, 60), n / 2);
			turn(fake);
			EQUAL(fake->ports[0].sent + fake->ports[1].sent, fake->delivered);
			check_conserved(fake);
		}
		EQUAL(fake->counters.ports[0].rx_packets, 64 * 65 / 2);
		EQUAL(drops_of(&fake->counters.ports[0]) + drops_of(&fake->counters.ports[1]), 0);
		done(fake);
	}
}

TEST(connect_passes_unchanged)
{
	pass(XSKD_UNCHANGED);
}

TEST(reflect_swaps_macs_and_nothing_else)
{
	pass(XSKD_SWAP_MACS);
}

TEST(counters_of_a_packet)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *in = &fake->counters.ports[0], *out = &fake->counters.ports[1];

	fake_deliver(&fake->ports[0], 1, 100);
	CHECK(turn(fake));
	EQUAL(fake->ports[1].sent, 1);          /* one in, one out, in the same turn */
	EQUAL(wakeups_tx(out), 1);
	turn(fake);
	EQUAL(wakeups_tx(out), 1);
	EQUAL(in->rx_packets, 1);
	EQUAL(in->rx_bytes, 100);
	EQUAL(out->tx_packets, 1);
	EQUAL(out->tx_bytes, 100);
	EQUAL(out->tx_completed, 1);
	EQUAL(in->tx_packets + out->rx_packets, 0);
	done(fake);
}

TEST(reflect_goes_out_where_it_came_in)
{
	struct fake *fake = wired(&usual, XSKD_SWAP_MACS);

	fake_deliver(&fake->ports[1], 5, 60);
	turn(fake);
	EQUAL(fake->ports[0].sent, 0);
	EQUAL(fake->ports[1].sent, 5);
	EQUAL(fake->counters.ports[1].tx_packets, 5);
	done(fake);
}

/* The last bytes of a UMEM: a swap that touched more than twelve bytes would be out of bounds. */
TEST(swap_stays_within_the_shortest_packet)
{
	const struct fake_sizes one = { .frames = 1, .frame_size = 2048, .fill = 64, .rx = 64, .tx = 64,
					.completion = 64 };
	struct fake *fake = wired(&one, XSKD_SWAP_MACS);

	CHECK(fake_deliver_odd(&fake->ports[0], 2048 - 14, 14, 0));
	turn(fake);
	EQUAL(fake->ports[0].sent, 1);
	done(fake);
}

TEST(a_turn_takes_one_burst_from_each_port)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	fake_deliver(&fake->ports[0], 100, 60);
	fake_deliver(&fake->ports[1], 65, 60);
	turn(fake);
	EQUAL(fake->counters.ports[0].rx_packets, 64);
	EQUAL(fake->counters.ports[1].rx_packets, 64);
	turn(fake);
	EQUAL(fake->counters.ports[0].rx_packets, 100);
	EQUAL(fake->counters.ports[1].rx_packets, 65);
	turn(fake);
	EQUAL(turn(fake), 0);           /* nothing left to do says so */
	done(fake);
}

TEST(a_late_fill_consumer_index_does_no_harm)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	fake->ports[0].fill_late = 16;
	fake->ports[1].fill_late = 100;
	for (int i = 0; i < 200; i++) {
		fake_deliver(&fake->ports[0], 40, 60);
		fake_deliver(&fake->ports[1], 40, 60);
		turn(fake);
		check_conserved(fake);
	}
	CHECK(fake->ports[0].sent > 4000 && fake->ports[1].sent > 4000);
	done(fake);
}

/* ---- drops ------------------------------------------------------------------------------------- */

struct odd {
	uint64_t offset;
	uint32_t length, options;
	enum xskd_drop reason;
	uint32_t quarantined;
};

static const struct odd odds[] = {
	{ 256, 1, 0, XSKD_DROP_UNDERSIZE, 0 },
	{ 256, 13, 0, XSKD_DROP_UNDERSIZE, 0 },
	{ 2047, 1, 0, XSKD_DROP_UNDERSIZE, 0 },
	{ 256, 1519, 0, XSKD_DROP_OVERSIZE, 0 },
	{ 0, 2048, 0, XSKD_DROP_OVERSIZE, 0 },
	{ 256, 0, 0, XSKD_DROP_INVALID, 1 },            /* empty */
	{ 0, 2049, 0, XSKD_DROP_INVALID, 1 },           /* leaves its frame */
	{ 2048 - 59, 60, 0, XSKD_DROP_INVALID, 1 },
	{ 256, UINT32_MAX, 0, XSKD_DROP_INVALID, 1 },
	{ 256, 60, 1, XSKD_DROP_INVALID, 1 },           /* options that we never asked for */
	{ 256, 60, 1u << 31, XSKD_DROP_INVALID, 1 },
	{ 256, UINT32_MAX, UINT32_MAX, XSKD_DROP_INVALID, 1 },
};

/* Alone, first, in the middle and last: the packets around it pass. */
static void drop_each(enum xskd_action action)
{
	static const struct { uint32_t before, after; } places[] = {
		{ 0, 0 }, { 0, 9 }, { 7, 11 }, { 8, 3 }, { 63, 0 },
	};

	for (size_t i = 0; i < LENGTH(odds) * LENGTH(places); i++) {
		const struct odd *odd = &odds[i / LENGTH(places)];
		uint32_t before = places[i % LENGTH(places)].before, after = places[i % LENGTH(places)].after;
		struct fake *fake = wired(&usual, action);

		EQUAL(fake_deliver(&fake->ports[0], before, 60), before);
		CHECK(fake_deliver_odd(&fake->ports[0], odd->offset, odd->length, odd->options));
		EQUAL(fake_deliver(&fake->ports[0], after, 60), after);
		turn(fake);
		EQUAL(fake->ports[0].sent + fake->ports[1].sent, before + after);
		EQUAL(fake->umem.quarantined, odd->quarantined);
		EQUAL(fake->counters.ports[0].rx_bytes, 60 * (before + after) + (uint64_t)odd->length);
		check_drops(fake, 0, odd->reason, 1);
		check_drops(fake, 1, odd->reason, 0);
		done(fake);
	}
}

TEST(each_bad_packet_has_one_reason_in_connect)
{
	drop_each(XSKD_UNCHANGED);
}

TEST(each_bad_packet_has_one_reason_in_reflect)
{
	drop_each(XSKD_SWAP_MACS);
}

TEST(every_packet_of_a_burst_is_bad)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	for (int i = 0; i < 10; i++) {
		EQUAL(fake_deliver(&fake->ports[0], 64, i % 2 ? 13 : 1600), 64);
		turn(fake);
		check_conserved(fake);
	}
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_UNDERSIZE], 320);
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_OVERSIZE], 320);
	EQUAL(fake->ports[1].tx_calls, 0);
	done(fake);
}

TEST(the_egress_says_what_is_too_long)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	fake->ports[1].port.max_length = 100;
	fake_deliver(&fake->ports[0], 1, 100);
	fake_deliver(&fake->ports[0], 1, 101);
	fake_deliver(&fake->ports[1], 1, 1518);
	turn(fake);
	EQUAL(fake->ports[1].sent, 1);
	EQUAL(fake->ports[0].sent, 1);
	check_drops(fake, 0, XSKD_DROP_OVERSIZE, 1);
	done(fake);
}

/* Addresses that the kernel never got from this port: counted, and nothing else happens. */
TEST(addresses_that_are_not_ours)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	uint64_t others = ((uint64_t *)fake->ports[1].port.rings[XSKD_FILL].entries)[0];
	const uint64_t wrong[] = {
		1024 * 2048, 1ull << 43, UINT64_MAX, UINT64_MAX - 59, 1023 * 2048 + 256, others,
	};

	fake_deliver(&fake->ports[0], 10, 60);
	for (size_t i = 0; i < LENGTH(wrong); i++)
		fake_deliver_raw(&fake->ports[0], wrong[i], 60, 0);
	fake_deliver(&fake->ports[0], 10, 60);
	turn(fake);
	EQUAL(fake->ports[1].sent, 20);
	EQUAL(fake->umem.quarantined, 0);
	check_drops(fake, 0, XSKD_DROP_INVALID, LENGTH(wrong));
	done(fake);
}

TEST(the_same_frame_twice_in_one_burst)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	const struct xdp_desc *rx = fake->ports[0].port.rings[XSKD_RX].entries;

	fake_deliver(&fake->ports[0], 1, 60);
	fake_deliver_raw(&fake->ports[0], rx[128 - 41].addr, 60, 0);
	turn(fake);
	EQUAL(fake->ports[1].sent, 1);
	check_drops(fake, 0, XSKD_DROP_INVALID, 1);
	done(fake);
}

/* ---- TX full ----------------------------------------------------------------------------------- */

/* TX of port 1 full, its kernel stuck, 10 packets waiting in RX of port 0. */
static struct fake *stuck(void)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	fake->ports[1].tx_budget = 0;
	for (int i = 0; i < 2; i++) {
		EQUAL(fake_deliver(&fake->ports[0], 64, 60), 64);
		turn(fake);
	}
	EQUAL(fake_deliver(&fake->ports[0], 10, 60), 10);
	EQUAL(fake->counters.ports[0].tx_blocked, 0);
	turn(fake);
	EQUAL(fake->counters.ports[0].rx_packets, 128);
	EQUAL(fake->counters.ports[0].tx_blocked, 1);
	EQUAL(fake->ports[1].port.blocked_since_ns, fake->forward.now_ns);
	return fake;
}

TEST(tx_full_packets_wait)
{
	struct fake *fake = stuck();

	fake->forward.now_ns += 20 * MS - 1;
	EQUAL(turn(fake), 0);
	check_drops(fake, 0, XSKD_DROP_TX_FULL, 0);
	fake->ports[1].tx_budget = 32;
	turn(fake);                     /* the kernel moves again: that is seen in the turn after */
	turn(fake);
	EQUAL(fake->ports[1].port.blocked_since_ns, 0);
	EQUAL(fake->ports[1].sent, 138);
	check_drops(fake, 0, XSKD_DROP_TX_FULL, 0);
	done(fake);
}

TEST(tx_full_packets_are_dropped_after_the_deadline)
{
	struct fake *fake = stuck();

	fake->forward.now_ns += 20 * MS;
	CHECK(turn(fake));
	check_drops(fake, 0, XSKD_DROP_TX_FULL, 10);
	fake_deliver(&fake->ports[0], 5, 60);           /* and so are those that come while it lasts */
	fake_deliver_odd(&fake->ports[0], 256, 60, 1);
	turn(fake);
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_TX_FULL], 15);
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_INVALID], 1);
	check_conserved(fake);
	fake_send(&fake->ports[1], 1);                  /* exactly one slot */
	fake_deliver(&fake->ports[0], 2, 60);
	turn(fake);
	EQUAL(fake->counters.ports[1].tx_packets, 129);
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_TX_FULL], 15);
	turn(fake);                                     /* a new wait has a new deadline */
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_TX_FULL], 15);
	EQUAL(fake->ports[1].port.blocked_since_ns, fake->forward.now_ns);
	fake->ports[1].tx_budget = 64;
	for (int i = 0; i < 4; i++)
		turn(fake);
	EQUAL(fake->ports[1].sent, 130);
	done(fake);
}

TEST(a_stuck_port_does_not_hold_up_the_other_direction)
{
	struct fake *fake = stuck();

	fake_deliver(&fake->ports[1], 64, 60);
	turn(fake);
	EQUAL(fake->ports[0].sent, 64);
	done(fake);
}

/* ---- wakeups ----------------------------------------------------------------------------------- */

TEST(wakeup_is_repeated_while_it_makes_headway)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *out = &fake->counters.ports[1];

	fake->ports[1].tx_budget = 16;
	fake_deliver(&fake->ports[0], 64, 60);
	turn(fake);
	EQUAL(fake->ports[1].sent, 64);
	EQUAL(wakeups_tx(out), 4);
	EQUAL(out->wakeup_errors[XSKD_ERROR_EAGAIN], 3);
	done(fake);
}

/* Linux 6.1 and 6.12: after the first call TX looks as before, and half of the burst has gone. */
TEST(wakeup_is_repeated_for_a_burst_whose_headway_does_not_show)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *out = &fake->counters.ports[1];

	fake->ports[1].port.tx_shows_late = 1;
	fake_deliver(&fake->ports[0], 64, 60);
	turn(fake);
	EQUAL(fake->ports[1].sent, 64);
	EQUAL(wakeups_tx(out), 2);
	EQUAL(out->wakeup_errors[XSKD_ERROR_EAGAIN], 1);
	EQUAL(fake->ports[1].consumer[XSKD_TX], fake->ports[1].producer[XSKD_TX]);
	fake->ports[1].tx_budget = 0;                   /* it takes nothing: no more calls than for all of it */
	fake_deliver(&fake->ports[0], 64, 60);
	turn(fake);
	EQUAL(wakeups_tx(out), 4);
	fake->ports[1].tx_budget = 32;
	turn(fake);
	EQUAL(fake->ports[1].sent, 128);
	done(fake);
}

TEST(wakeup_stops_without_headway_and_without_end)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *out = &fake->counters.ports[1];

	fake->ports[1].tx_budget = 0;
	fake_deliver(&fake->ports[0], 64, 60);
	turn(fake);
	EQUAL(wakeups_tx(out), 1);
	fake->ports[1].tx_budget = 1;
	turn(fake);
	EQUAL(wakeups_tx(out), 1 + 8);          /* a bounded number for each burst */
	EQUAL(fake->ports[1].sent, 8);
	done(fake);
}

TEST(a_full_completion_ring_stops_sending_until_it_is_drained)
{
	struct fake_sizes small = usual;
	struct fake *fake;

	small.completion = 16;
	fake = wired(&small, XSKD_UNCHANGED);
	fake_deliver(&fake->ports[0], 64, 60);
	for (int i = 1; i <= 4; i++) {
		turn(fake);
		EQUAL(fake->ports[1].sent, 16 * i);
	}
	turn(fake);
	EQUAL(fake->counters.ports[1].tx_completed, 64);
	done(fake);
}

TEST(busy_is_a_packet_refused_by_the_driver)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *out = &fake->counters.ports[1];

	fake_answer(&fake->ports[1], EBUSY);
	fake_answer(&fake->ports[1], EBUSY);
	fake_deliver(&fake->ports[0], 10, 60);
	turn(fake);
	EQUAL(fake->ports[1].sent, 8);
	EQUAL(wakeups_tx(out), 3);
	EQUAL(out->wakeup_errors[XSKD_ERROR_EBUSY], 2);
	check_drops(fake, 1, XSKD_DROP_TX_REFUSED, 2);
	EQUAL(out->tx_packets, 10);
	turn(fake);
	EQUAL(out->tx_completed, 10);
	done(fake);
}

TEST(temporary_errors_pass)
{
	static const struct { int error; enum xskd_wakeup_error counter; } errors[] = {
		{ EAGAIN, XSKD_ERROR_EAGAIN }, { ENOBUFS, XSKD_ERROR_ENOBUFS },
		{ ENETDOWN, XSKD_ERROR_ENETDOWN },
	};

	for (size_t i = 0; i < LENGTH(errors); i++) {
		struct fake *fake = wired(&usual, XSKD_UNCHANGED);
		struct xskd_port_counters *out = &fake->counters.ports[1];

		fake_answer(&fake->ports[1], errors[i].error);
		fake_deliver(&fake->ports[0], 10, 60);
		turn(fake);
		EQUAL(fake->ports[1].sent, 0);
		EQUAL(wakeups_tx(out), 1);              /* no headway: not again in this turn */
		EQUAL(out->wakeup_errors[errors[i].counter], 1);
		EQUAL(fake->ports[1].port.error, 0);
		turn(fake);
		EQUAL(fake->ports[1].sent, 10);
		EQUAL(drops_of(&fake->counters.ports[0]), 0);
		done(fake);
	}
}

TEST(no_call_where_the_kernel_asks_for_none)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	fake->ports[1].flags[XSKD_TX] = 0;
	fake_deliver(&fake->ports[0], 10, 60);
	turn(fake);
	EQUAL(fake->ports[1].tx_calls, 0);
	EQUAL(wakeups_tx(&fake->counters.ports[1]), 0);
	EQUAL(fake->counters.ports[1].wakeups_skipped[XSKD_DIRECTION_TX], 1);
	EQUAL(fake_send(&fake->ports[1], 64), 10);
	turn(fake);
	EQUAL(wakeups_rx(&fake->counters.ports[0]), 0);
	EQUAL(fake->counters.ports[0].wakeups_skipped[XSKD_DIRECTION_RX], 1);
	EQUAL(fake->ports[0].rx_calls, 0);
	done(fake);
}

TEST(a_starved_port_is_counted_and_woken_when_it_has_frames_again)
{
	const struct fake_sizes few = { .frames = 32, .frame_size = 2048, .fill = 32, .rx = 64, .tx = 64,
					.completion = 64, .start = UINT32_MAX - 16 };
	struct fake *fake = wired(&few, XSKD_UNCHANGED);

	fake->ports[0].flags[XSKD_FILL] = XDP_RING_NEED_WAKEUP;
	fake->ports[1].tx_budget = 0;
	EQUAL(fake_deliver(&fake->ports[0], 64, 60), 32);
	turn(fake);
	EQUAL(fake->counters.ports[0].fill_starved, 1);
	EQUAL(fake->ports[0].rx_calls, 0);
	turn(fake);
	EQUAL(fake->counters.ports[0].fill_starved, 2);
	fake_send(&fake->ports[1], 20);
	turn(fake);
	EQUAL(fake->counters.ports[0].fill_starved, 2);
	EQUAL(fake->ports[0].rx_calls, 1);
	EQUAL(fake_deliver(&fake->ports[0], 64, 60), 20);
	done(fake);
}

TEST(a_flag_that_is_set_after_the_refill_is_seen_by_the_next_idle_turn)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];

	turn(fake);
	EQUAL(port->rx_calls, 0);
	port->flags[XSKD_FILL] = XDP_RING_NEED_WAKEUP;
	turn(fake);                                     /* nothing was refilled, but the driver asks */
	EQUAL(port->rx_calls, 1);
	turn(fake);
	EQUAL(port->rx_calls, 2);
	port->flags[XSKD_FILL] = 0;
	turn(fake);
	EQUAL(port->rx_calls, 2);
	done(fake);
}

/* ---- completions ------------------------------------------------------------------------------- */

TEST(completed_frames_go_to_fill_of_the_ingress_by_their_start)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct xskd_port *in = &fake->ports[0].port;
	uint64_t *fill = in->rings[XSKD_FILL].entries, addr;
	uint32_t at = in->rings[XSKD_FILL].own;

	CHECK(fake_deliver_odd(&fake->ports[0], 700, 60, 0));
	addr = ((struct xdp_desc *)in->rings[XSKD_RX].entries)[128 - 41].addr;
	EQUAL(addr % 2048, 700);
	fake->umem.free_count = 0;              /* so that FILL has room for it */
	turn(fake);
	turn(fake);
	EQUAL(in->rings[XSKD_FILL].own, at + 1);
	EQUAL(fill[at % 128], addr - 700);
	fake->umem.free_count = 1024 - 256;
	done(fake);
}

TEST(completions_beyond_the_room_in_fill_become_free)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	fake_deliver(&fake->ports[0], 50, 60);
	turn(fake);                             /* refilled from the free stack in the same turn */
	EQUAL(fake->umem.free_count, 1024 - 256 - 50);
	turn(fake);                             /* so there is no room for what comes back */
	EQUAL(fake->umem.free_count, 1024 - 256);
	EQUAL(fake->counters.ports[1].tx_completed, 50);
	done(fake);
}

/* Whether they go to FILL or to the free stack, bad ones are counted and no frame is given twice. */
static void bogus_completions(uint32_t fill_room)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct fake_port *out = &fake->ports[1];
	const struct xdp_desc *tx = out->port.rings[XSKD_TX].entries;
	const uint64_t *fill = fake->ports[0].port.rings[XSKD_FILL].entries;

	for (uint32_t i = 0; i < 20; i++) {
		fake_deliver(&fake->ports[0], 32, 60);
		turn(fake);
		fake_complete_raw(out, tx[(out->kernel[XSKD_TX] - 1) % 128].addr);      /* again */
		fake_complete_raw(out, UINT64_MAX - i);
		fake_complete_raw(out, 1024 * 2048);
		fake_complete_raw(out, fill[i]);
		if (fill_room)
			fake_deliver(&fake->ports[0], fill_room, 60);
		turn(fake);
		turn(fake);
		EQUAL(fake->counters.ports[1].completion_invalid, 4 * (i + 1));
		check_conserved(fake);
	}
	done(fake);
}

TEST(bogus_completions_on_their_way_to_fill)
{
	bogus_completions(64);
}

TEST(bogus_completions_on_their_way_to_the_free_stack)
{
	bogus_completions(0);
}
