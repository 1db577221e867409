/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames and one port, as a user of the library calls them; and that the audit can fail.
 */
#include <errno.h>

#include "scene.h"

static struct xdp_desc held[1024];

/* ---- frames ------------------------------------------------------------------------------------ */

TEST(take_and_give)
{
	struct fake *fake = fake_new(&usual, XSKD_UNCHANGED);

	EQUAL(xskd_umem_take(&fake->umem, held, 3), 3);
	for (uint64_t i = 0; i < 3; i++)
		EQUAL(held[i].addr, i * 2048);
	EQUAL(fake->umem.held, 3);
	check_frames(fake);
	held[1].addr += 300;            /* anywhere inside names the frame */
	EQUAL(xskd_umem_give(&fake->umem, held, 3), 3);
	EQUAL(fake->umem.held, 0);
	EQUAL(fake->umem.free_count, 1024);
	done(fake);
}

TEST(take_more_than_there_are)
{
	struct fake *fake = fake_new(&usual, XSKD_UNCHANGED);

	EQUAL(xskd_umem_take(&fake->umem, held, 5000), 1024);
	EQUAL(xskd_umem_take(&fake->umem, held, 1), 0);
	EQUAL(xskd_umem_give(&fake->umem, held, 1024), 1024);
	done(fake);
}

TEST(give_what_is_not_held_is_refused)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct xdp_desc wrong[] = {
		{ .addr = 1024 * 2048 }, { .addr = UINT64_MAX }, { .addr = 1ull << 43 },
		{ .addr = 0 },                  /* in FILL */
		{ .addr = 1023 * 2048 },        /* free */
	};

	EQUAL(xskd_umem_give(&fake->umem, wrong, LENGTH(wrong)), 0);
	xskd_umem_take(&fake->umem, held, 2);
	held[1] = held[0];
	EQUAL(xskd_umem_give(&fake->umem, held, 2), 1);         /* giving twice gives once */
	EQUAL(xskd_umem_give(&fake->umem, held, 2), 0);
	EQUAL(fake->umem.held, 1);
	check_frames(fake);
	fake_free(fake);
}

/* ---- receive ----------------------------------------------------------------------------------- */

TEST(receive_hands_over_what_arrived)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];

	EQUAL(xskd_receive(&port->port, held, 64), 0);
	EQUAL(fake_deliver(port, 100, 60), 100);
	EQUAL(xskd_receive(&port->port, held, 64), 64);
	EQUAL(xskd_receive(&port->port, held + 64, 64), 36);
	for (uint32_t i = 0; i < 100; i++) {
		EQUAL(held[i].len, 60);
		EQUAL(fake->umem.area[held[i].addr], i);
		EQUAL(fake->umem.owner[held[i].addr / 2048], 1);
	}
	EQUAL(fake->counters.ports[0].rx_packets, 100);
	EQUAL(fake->counters.ports[0].rx_bytes, 6000);
	check_frames(fake);
	EQUAL(xskd_umem_give(&fake->umem, held, 100), 100);
	check_frames(fake);
	fake_free(fake);
}

/* Each is counted once, as invalid; a frame of ours that arrived so is never used again. */
TEST(receive_refuses_bad_descriptors)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];
	struct xskd_port_counters *counters = &fake->counters.ports[0];

	fake_deliver_raw(port, 1024 * 2048, 60, 0);             /* out of range, by one */
	fake_deliver_raw(port, UINT64_MAX - 60, 60, 0);
	fake_deliver_raw(port, 1023 * 2048 + 256, 60, 0);       /* a free one */
	fake_deliver_raw(port, 127 * 2048 + 1001, 60, 0);       /* in FILL, and any offset will do: not bad */
	EQUAL(xskd_receive(&port->port, held, 64), 1);
	EQUAL(counters->drops[XSKD_DROP_INVALID], 3);
	EQUAL(fake->umem.quarantined, 0);
	xskd_umem_give(&fake->umem, held, 1);

	CHECK(fake_deliver_odd(port, 2048 - 59, 60, 0));        /* crosses its frame */
	CHECK(fake_deliver_odd(port, 0, 2049, 0));
	CHECK(fake_deliver_odd(port, 256, UINT32_MAX, 0));
	CHECK(fake_deliver_odd(port, 256, 0, 0));               /* empty */
	CHECK(fake_deliver_odd(port, 256, 60, 1));              /* to be continued: we never asked */
	CHECK(fake_deliver_odd(port, 256, 60, 1u << 31));
	CHECK(fake_deliver_odd(port, 256, UINT32_MAX, UINT32_MAX));
	CHECK(fake_deliver_odd(port, 2048 - 60, 60, 0));        /* just fits */
	CHECK(fake_deliver_odd(port, 0, 2048, 0));
	CHECK(fake_deliver_odd(port, 2047, 1, 0));
	EQUAL(xskd_receive(&port->port, held, 64), 3);
	EQUAL(counters->drops[XSKD_DROP_INVALID], 10);
	EQUAL(fake->umem.quarantined, 7);
	EQUAL(counters->rx_packets, 14);
	fake_free(fake);
}

/* The kernel tells of an unaligned frame by its address and an offset in the upper 16 bits; together they must be
 * inside. Frames of 3000 bytes: found by division. */
TEST(unaligned_frames_have_their_offset_in_the_upper_bits)
{
	struct fake *fake = fake_new(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];
	const struct xskd_ring *fill = &port->port.rings[XSKD_FILL], *tx = &port->port.rings[XSKD_TX];
	const uint64_t offset = 1ull << 48;

	fake->umem.frame_size = 3000;
	fake->umem.frame_shift = 0;
	fake->umem.frames = 600;        /* as many as the same memory holds, at least */
	xskd_umem_reset(&fake->umem);
	EQUAL(xskd_refill(&port->port), 128);
	EQUAL(((uint64_t *)fill->entries)[(fill->own - 1) & (fill->size - 1)], 127 * 3000);
	fake_deliver_raw(port, 5 * 3000 + 256 * offset, 60, 0);
	fake_deliver_raw(port, 6 * 3000 + 2940 * offset, 60, 0);        /* just fits */
	fake_deliver_raw(port, 7 * 3000 + 2941 * offset, 60, 0);        /* and does not */
	fake_deliver_raw(port, 9 * 3000 + 3000 * offset, 60, 0);        /* the next one's, which is there for it */
	fake_deliver_raw(port, 599 * 3000 + 3000 * offset, 60, 0);      /* out of range */
	fake_deliver_raw(port, UINT64_MAX, 60, 0);
	EQUAL(xskd_receive(&port->port, held, 64), 3);
	EQUAL(held[0].addr, 5 * 3000 + 256);
	EQUAL(held[1].addr, 6 * 3000 + 2940);
	EQUAL(held[2].addr, 10 * 3000);
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_INVALID], 3);
	EQUAL(fake->umem.quarantined, 1);
	EQUAL(xskd_transmit(&port->port, held, 3), 3);
	EQUAL(((struct xdp_desc *)tx->entries)[(tx->own - 3) & (tx->size - 1)].addr, 5 * 3000 + 256);
	fake_free(fake);
}

/* The kernel hands the same frame over twice: the second is not ours to take. */
TEST(receive_takes_a_frame_once)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];

	fake_deliver(port, 1, 60);
	fake_deliver_raw(port, ((struct xdp_desc *)port->port.rings[XSKD_RX].entries)[128 - 41].addr, 60, 0);
	EQUAL(xskd_receive(&port->port, held, 64), 1);
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_INVALID], 1);
	EQUAL(fake->umem.quarantined, 0);
	check_frames(fake);
	fake_free(fake);
}

TEST(torn_rings_move_nothing)
{
	static const uint32_t jumps[] = { 129, 1000, 0x80000000u, UINT32_MAX };

	for (size_t i = 0; i < LENGTH(jumps); i++) {
		struct fake *fake = ready(&usual, XSKD_UNCHANGED);
		struct fake_port *port = &fake->ports[0];

		port->producer[XSKD_RX] = port->consumer[XSKD_RX] + jumps[i];
		port->producer[XSKD_COMPLETION] = port->consumer[XSKD_COMPLETION] + jumps[i];
		port->consumer[XSKD_TX] = port->producer[XSKD_TX] - jumps[i];
		port->consumer[XSKD_FILL] = port->producer[XSKD_FILL] - jumps[i];
		EQUAL(xskd_receive(&port->port, held, 64), 0);
		EQUAL(xskd_complete(&port->port), 0);
		xskd_umem_take(&fake->umem, held, 1);
		held[0].len = 60;
		EQUAL(xskd_transmit(&port->port, held, 1), 0);
		EQUAL(xskd_refill(&port->port), 0);
		EQUAL(xskd_forward_turn(&fake->forward), 0);
		EQUAL(xskd_forward_publish(&fake->forward), 0);
		EQUAL(xskd_forward_audit(&fake->forward), 0);
		fake_free(fake);
	}
}

/* ---- transmit and complete --------------------------------------------------------------------- */

static uint32_t take_packets(struct fake *fake, uint32_t n)
{
	n = xskd_umem_take(&fake->umem, held, n);
	for (uint32_t i = 0; i < n; i++)
		held[i].len = 60;
	return n;
}

TEST(transmit_and_complete)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[1];

	EQUAL(take_packets(fake, 100), 100);
	EQUAL(xskd_transmit(&port->port, held, 100), 100);
	EQUAL(fake->umem.held, 0);
	check_frames(fake);
	EQUAL(fake_send(port, 99), 99);
	EQUAL(xskd_complete(&port->port), 99);
	EQUAL(xskd_complete(&port->port), 0);
	EQUAL(port->port.tx_side, 1);
	EQUAL(fake->counters.ports[1].tx_packets, 100);
	EQUAL(fake->counters.ports[1].tx_bytes, 6000);
	EQUAL(fake->counters.ports[1].tx_completed, 99);
	check_frames(fake);
	fake_free(fake);
}

TEST(transmit_stops_where_tx_is_full)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[1];

	EQUAL(take_packets(fake, 200), 200);
	EQUAL(xskd_transmit(&port->port, held, 127), 127);
	EQUAL(xskd_transmit(&port->port, held + 127, 73), 1);   /* exactly one slot */
	EQUAL(xskd_transmit(&port->port, held + 128, 72), 0);
	EQUAL(fake->umem.held, 72);
	fake_send(port, 5);
	EQUAL(xskd_transmit(&port->port, held + 128, 72), 5);
	EQUAL(xskd_umem_give(&fake->umem, held + 133, 67), 67);
	check_frames(fake);
	fake_free(fake);
}

/* A bad one ends the batch: the caller learns which it was, and still holds it. */
TEST(transmit_refuses_bad_descriptors)
{
	static const struct xdp_desc wrong[] = {
		{ .addr = 1024 * 2048, .len = 60 }, { .addr = UINT64_MAX - 59, .len = 60 },
		{ .addr = 1023 * 2048, .len = 60 },             /* free */
		{ .addr = 0, .len = 60 },                       /* in FILL */
	};
	static const struct xdp_desc bad[] = {
		{ .len = 0 }, { .len = 13 }, { .len = 1519 }, { .len = UINT32_MAX },
		{ .len = 60, .options = 1 }, { .len = UINT32_MAX, .options = UINT32_MAX },
		{ .addr = 2000, .len = 60 },
	};
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];
	struct xdp_desc good;

	for (size_t i = 0; i < LENGTH(wrong); i++)
		EQUAL(xskd_transmit(&port->port, &wrong[i], 1), 0);
	EQUAL(take_packets(fake, 2), 2);
	good = held[1];
	for (size_t i = 0; i < LENGTH(bad); i++) {
		held[1] = bad[i];
		held[1].addr += good.addr;
		EQUAL(xskd_transmit(&port->port, &held[1], 1), 0);
	}
	held[1] = held[0];              /* the same one twice: it is sent once */
	EQUAL(xskd_transmit(&port->port, held, 2), 1);
	EQUAL(fake->umem.held, 1);
	good.len = 14;
	EQUAL(xskd_transmit(&port->port, &good, 1), 1);
	EQUAL(fake_send(port, 64), 2);
	EQUAL(fake->counters.ports[0].tx_packets, 2);
	check_frames(fake);
	fake_free(fake);
}

TEST(completions_that_name_nothing_are_counted)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];
	uint32_t free_count;

	take_packets(fake, 2);
	xskd_transmit(&port->port, held, 2);
	xskd_transmit(&fake->ports[1].port, held, 1);
	free_count = fake->umem.free_count;
	fake_send(port, 1);
	fake_complete_raw(port, held[0].addr);          /* a second time */
	fake_complete_raw(port, 1024 * 2048);           /* out of range */
	fake_complete_raw(port, UINT64_MAX);
	fake_complete_raw(port, 1023 * 2048);           /* free */
	fake_complete_raw(port, 0);                     /* in FILL */
	EQUAL(xskd_complete(&port->port), 6);
	EQUAL(fake->counters.ports[0].completion_invalid, 5);
	EQUAL(fake->counters.ports[0].tx_completed, 1);
	EQUAL(fake->umem.free_count, free_count + 1);
	EQUAL(port->port.tx_side, 1);
	check_frames(fake);
	fake_free(fake);
}

/* ---- refill and wakeups ------------------------------------------------------------------------ */

TEST(refill_fills_to_the_brim)
{
	struct fake *fake = fake_new(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];

	EQUAL(xskd_refill(&port->port), 128);
	EQUAL(xskd_refill(&port->port), 0);
	EQUAL(fake->counters.ports[0].fill_starved, 0);         /* nothing to do is not starving */
	fake_deliver(port, 1, 60);
	port->consumer[XSKD_FILL] = port->producer[XSKD_FILL] - 127;    /* exactly one slot */
	EQUAL(xskd_refill(&port->port), 1);
	EQUAL(port->port.refilled, 129);
	check_frames(fake);
	fake_free(fake);
}

TEST(refill_with_too_few_frames_starves)
{
	const struct fake_sizes few = { .frames = 16, .frame_size = 4096, .fill = 64, .rx = 64, .tx = 64,
					.completion = 64, .start = UINT32_MAX - 8 };
	struct fake *fake = fake_new(&few, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];

	EQUAL(xskd_refill(&port->port), 16);
	EQUAL(xskd_refill(&port->port), 0);
	EQUAL(fake->counters.ports[0].fill_starved, 0);         /* no frame, but FILL is not empty */
	EQUAL(fake_deliver(port, 16, 60), 16);
	EQUAL(xskd_refill(&port->port), 0);
	EQUAL(fake->counters.ports[0].fill_starved, 1);
	EQUAL(xskd_receive(&port->port, held, 64), 16);
	EQUAL(xskd_umem_give(&fake->umem, held, 16), 16);
	EQUAL(xskd_refill(&port->port), 16);
	check_frames(fake);
	fake_free(fake);
}

TEST(rx_is_woken_as_often_as_the_kernel_asks)
{
	struct fake *fake = fake_new(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];
	struct xskd_port_counters *counters = &fake->counters.ports[0];

	EQUAL(xskd_wakeup_rx(&port->port), 0);          /* nothing was refilled: not even looked at */
	EQUAL(counters->wakeups_skipped[XSKD_DIRECTION_RX], 0);
	xskd_refill(&port->port);
	EQUAL(xskd_wakeup_rx(&port->port), 0);
	EQUAL(counters->wakeups_skipped[XSKD_DIRECTION_RX], 1);
	EQUAL(port->rx_calls, 0);
	port->flags[XSKD_FILL] = XDP_RING_NEED_WAKEUP;
	fake_deliver(port, 1, 60);
	xskd_refill(&port->port);
	EQUAL(xskd_wakeup_rx(&port->port), 0);
	EQUAL(xskd_wakeup_rx(&port->port), 0);          /* the flag may have been set after the first look */
	EQUAL(port->rx_calls, 2);
	EQUAL(wakeups_rx(counters), 2);
	fake_deliver(port, 1, 60);
	xskd_refill(&port->port);
	port->rx_answer = EINVAL;
	EQUAL(xskd_wakeup_rx(&port->port), EINVAL);
	EQUAL(port->port.error, EINVAL);
	EQUAL(counters->wakeup_errors[XSKD_ERROR_OTHER], 1);
	fake_free(fake);
}

TEST(tx_is_woken_only_with_something_to_send_and_when_asked)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[0];
	struct xskd_port_counters *counters = &fake->counters.ports[0];

	EQUAL(xskd_wakeup_tx(&port->port), 0);
	EQUAL(port->tx_calls, 0);
	EQUAL(counters->wakeups_skipped[XSKD_DIRECTION_TX], 0);
	take_packets(fake, 1);
	xskd_transmit(&port->port, held, 1);
	port->flags[XSKD_TX] = 0;
	EQUAL(xskd_wakeup_tx(&port->port), 0);
	EQUAL(port->tx_calls, 0);
	EQUAL(counters->wakeups_skipped[XSKD_DIRECTION_TX], 1);
	port->port.rings[XSKD_TX].flags = NULL;         /* a kernel without the flag never sleeps */
	EQUAL(xskd_wakeup_tx(&port->port), 0);
	EQUAL(port->tx_calls, 0);
	EQUAL(counters->wakeups_skipped[XSKD_DIRECTION_TX], 2);
	port->port.rings[XSKD_TX].flags = &port->flags[XSKD_TX];
	port->flags[XSKD_TX] = XDP_RING_NEED_WAKEUP;
	EQUAL(xskd_wakeup_tx(&port->port), 0);
	EQUAL(port->tx_calls, 1);
	EQUAL(wakeups_tx(counters), 1);
	check_frames(fake);
	fake_free(fake);
}

/* ---- the audit can fail ------------------------------------------------------------------------ */

static struct fake *busy_scene(void)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	fake->ports[0].prefetch = 8;
	fake_deliver(&fake->ports[0], 20, 60);
	EQUAL(xskd_receive(&fake->ports[0].port, held, 10), 10);
	EQUAL(xskd_transmit(&fake->ports[1].port, held, 5), 5);
	EQUAL(fake_send(&fake->ports[1], 2), 2);
	check_frames(fake);             /* free, FILL, kernel, RX, held, TX and completion all have some */
	for (int place = 0; place < XSKD_PLACE_QUARANTINED; place++)
		CHECK(fake->counters.frames_in[place]);
	return fake;
}

TEST(audit_finds_a_frame_twice_on_the_free_stack)
{
	struct fake *fake = busy_scene();

	fake->umem.free[1] = fake->umem.free[0];
	EQUAL(xskd_forward_audit(&fake->forward), 2);   /* one is there twice, the other nowhere */
	EQUAL(xskd_forward_audit(&fake->forward), 2);   /* and looking changes nothing */
	fake->umem.free[1] = 1 << 20;
	EQUAL(xskd_forward_audit(&fake->forward), 2);
	fake_free(fake);
}

TEST(audit_finds_a_wrong_owner)
{
	static const uint8_t wrong[] = { 0x00, 0x01, 0x02, 0x40, 0x41, 0x80, 0x81, 0x20, 0x4f, 0xff };

	for (size_t i = 0; i < LENGTH(wrong); i++) {
		struct fake *fake = busy_scene();

		for (uint32_t frame = 0; frame < fake->umem.frames; frame++) {
			uint8_t right = fake->umem.owner[frame];

			if (wrong[i] == right)
				continue;
			fake->umem.owner[frame] = wrong[i];
			CHECK(xskd_forward_audit(&fake->forward) > 0);
			fake->umem.owner[frame] = right;
		}
		EQUAL(xskd_forward_audit(&fake->forward), 0);
		fake_free(fake);
	}
}

TEST(audit_finds_a_wrong_entry_in_rx_and_completion)
{
	struct fake *fake = busy_scene();
	struct xdp_desc *rx = fake->ports[0].port.rings[XSKD_RX].entries;
	uint64_t *completion = fake->ports[1].port.rings[XSKD_COMPLETION].entries, kept;

	/* Index 2^32 - 41 lies in slot 87; ten of RX have been read. */
	kept = rx[97].addr;
	rx[97].addr = 1023 * 2048;
	EQUAL(xskd_forward_audit(&fake->forward), 1);
	rx[97].addr = kept;
	completion[87] += 1ull << 40;
	EQUAL(xskd_forward_audit(&fake->forward), 1);
	fake_free(fake);
}

TEST(publish_finds_a_frame_too_few_or_too_many)
{
	struct fake *fake = busy_scene();

	fake->umem.free_count--;
	EQUAL(xskd_forward_publish(&fake->forward), 1);
	EQUAL(fake->counters.frames_unaccounted, 1);
	CHECK(xskd_forward_audit(&fake->forward) > 0);
	fake->umem.free_count += 2;
	EQUAL(xskd_forward_publish(&fake->forward), -1);
	EQUAL(fake->counters.frames_unaccounted, 1);
	CHECK(xskd_forward_audit(&fake->forward) > 0);
	fake_free(fake);
}

TEST(audit_finds_wrong_counts)
{
	struct fake *fake = busy_scene();
	uint32_t *counts[] = { &fake->umem.held, &fake->umem.quarantined, &fake->ports[0].port.rx_side,
			       &fake->ports[1].port.tx_side };

	for (size_t i = 0; i < LENGTH(counts); i++) {
		++*counts[i];
		EQUAL(xskd_forward_audit(&fake->forward), 1);
		--*counts[i];
	}
	check_frames(fake);
	fake_free(fake);
}
