/* SPDX-License-Identifier: Apache-2.0
 *
 * xskd_forward_run: how long it runs, when it sleeps and for what, and what ends it.
 */
#include <errno.h>
#include <poll.h>

#include "wire.h"

#define CONTROL 99      /* any number: the fake kernel never opens it */

static struct fake *scene(enum xskd_poll poll)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	fake->forward.poll = poll;
	fake->forward.control_fd = CONTROL;
	return fake;
}

static int run(struct fake *fake, uint64_t duration_ns)
{
	return xskd_forward_run(&fake->forward, duration_ns);
}

TEST(a_run_is_bounded_by_its_duration)
{
	for (enum xskd_poll poll = XSKD_POLL_ADAPTIVE; poll <= XSKD_POLL_WAKEUP; poll++) {
		struct fake *fake = scene(poll);
		uint64_t start = fake->now_ns;

		fake_deliver(&fake->ports[0], 10, 60);
		EQUAL(run(fake, 5 * MS), 0);
		CHECK(fake->now_ns - start >= 5 * MS && fake->now_ns - start <= 5 * MS + 3 * US);
		EQUAL(fake->forward.now_ns, fake->now_ns);
		EQUAL(fake->counters.heartbeat_ns, fake->now_ns);
		EQUAL(fake->ports[1].sent, 10);
		done(fake);
	}
}

TEST(no_time_at_all_is_one_turn)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	fake_deliver(&fake->ports[0], 10, 60);
	EQUAL(run(fake, 0), 0);
	EQUAL(fake->counters.turns, 1);
	EQUAL(fake->ports[1].sent, 10);
	done(fake);
}

TEST(busy_never_sleeps)
{
	struct fake *fake = scene(XSKD_POLL_BUSY);

	run(fake, 10 * MS);
	EQUAL(fake->polls, 0);
	EQUAL(fake->counters.sleeps, 0);
	EQUAL(fake->counters.turns, 10000);             /* the clock ticks once a turn */
	EQUAL(fake->counters.turns_idle, 10000);
	done(fake);
}

TEST(wakeup_sleeps_at_once)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	fake_deliver(&fake->ports[0], 10, 60);
	run(fake, 10 * MS);
	EQUAL(fake->counters.sleeps, 1);
	EQUAL(fake->counters.turns, 3);                 /* forward, recycle, idle */
	EQUAL(fake->counters.turns_idle, 1);
	CHECK(fake->timeout_ns > 9 * MS && fake->timeout_ns < 10 * MS);
	done(fake);
}

TEST(adaptive_goes_on_looking_for_a_while)
{
	struct fake *fake = scene(XSKD_POLL_ADAPTIVE);

	run(fake, 10 * MS);                             /* nothing came for long: asleep at once */
	EQUAL(fake->counters.sleeps, 1);
	EQUAL(fake->counters.turns, 1);
	fake_deliver(&fake->ports[0], 10, 60);
	run(fake, 40 * US);
	EQUAL(fake->counters.sleeps, 1);                /* still looking */
	run(fake, 40 * US);
	EQUAL(fake->counters.sleeps, 2);
	CHECK(fake->counters.turns_idle >= 45 && fake->counters.turns_idle <= 55);
	done(fake);
}

TEST(sleep_waits_for_packets_only)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	run(fake, MS);
	EQUAL(fake->polled[0], POLLIN);
	EQUAL(fake->polled[1], POLLIN);
	done(fake);
}

/* Port 1 is stuck and port 0 has packets for it. */
TEST(a_blocked_egress_is_waited_for_and_its_ingress_is_not)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	fake->ports[1].tx_budget = 0;
	EQUAL(fake_deliver(&fake->ports[0], 128, 60), 128);
	run(fake, 10 * US);
	EQUAL(fake_deliver(&fake->ports[0], 10, 60), 10);
	run(fake, 10 * MS);
	EQUAL(fake->polled[0], 0);
	EQUAL(fake->polled[1], POLLIN | POLLOUT);
	CHECK(fake->counters.sleeps >= 10 && fake->counters.sleeps < 20);       /* it neither spins ... */
	CHECK(fake->timeout_ns <= MS);                                          /* ... nor forgets TX */
	EQUAL(drops_of(&fake->counters.ports[0]), 0);
	run(fake, 15 * MS);
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_TX_FULL], 10);
	fake->ports[1].tx_budget = 32;
	run(fake, MS);
	EQUAL(fake->ports[1].sent, 128);
	EQUAL(fake->polled[0], POLLIN);
	EQUAL(fake->polled[1], POLLIN);
	EQUAL(fake->ports[1].port.blocked_since_ns, 0);
	done(fake);
}

TEST(room_on_a_blocked_egress_ends_the_sleep)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	fake->ports[1].tx_budget = 0;
	fake->ports[1].flags[XSKD_TX] = 0;              /* as with zero-copy: it sends by itself */
	EQUAL(fake_deliver(&fake->ports[0], 128, 60), 128);
	run(fake, 10 * US);
	EQUAL(fake_deliver(&fake->ports[0], 10, 60), 10);
	run(fake, 100 * US);
	EQUAL(fake->polled[1], POLLIN | POLLOUT);
	EQUAL(fake_send(&fake->ports[1], 64), 64);
	run(fake, 10 * US);
	EQUAL(fake->counters.ports[1].tx_packets, 138);
	done(fake);
}

/* In copy mode poll() sends what is on TX, and keeps to itself that a driver refused it. */
TEST(no_refusal_is_left_to_poll)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	fake->ports[1].port.poll_sends = 1;
	for (int i = 0; i < 20; i++) {
		fake_answer(&fake->ports[1], EAGAIN);
		fake_answer(&fake->ports[1], EBUSY);
	}
	fake_deliver(&fake->ports[0], 10, 60);
	run(fake, 20 * MS);
	CHECK(fake->counters.sleeps > 0);
	EQUAL(fake->counters.ports[1].drops[XSKD_DROP_TX_REFUSED], 10);
	EQUAL(fake->ports[1].sent, 0);
	EQUAL(fake->polled[1], POLLIN);
	done(fake);
}

TEST(a_port_with_something_on_tx_is_not_polled_in_copy_mode)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	fake->ports[1].port.poll_sends = 1;
	fake->ports[1].tx_budget = 0;
	fake_deliver(&fake->ports[0], 10, 60);
	run(fake, 5 * MS);
	EQUAL(fake->polled[0], POLLIN);
	EQUAL(fake->polled[1], FAKE_NOT_POLLED);
	EQUAL(fake_deliver(&fake->ports[1], 5, 60), 5);
	run(fake, 3 * MS);
	EQUAL(fake->ports[0].sent, 5);                  /* it is looked at all the same */
	fake->ports[1].tx_budget = 32;
	run(fake, 3 * MS);
	EQUAL(fake->ports[1].sent, 10);
	EQUAL(fake->polled[1], POLLIN);
	done(fake);
}

/* Nothing tells when a kernel that has no memory or no link would send again. */
TEST(unsent_packets_are_tried_again_every_millisecond)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	for (int i = 0; i < 5; i++)
		fake_answer(&fake->ports[1], ENETDOWN);
	fake_deliver(&fake->ports[0], 10, 60);
	EQUAL(run(fake, 20 * MS), 0);
	EQUAL(fake->counters.ports[1].wakeup_errors[XSKD_ERROR_ENETDOWN], 5);
	EQUAL(fake->ports[1].sent, 10);
	CHECK(fake->counters.sleeps <= 8);
	done(fake);
}

TEST(the_control_fd_ends_a_run)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);
	uint64_t start = fake->now_ns;

	EQUAL(run(fake, MS), 0);
	EQUAL(fake->forward.control_ready, 0);
	fake->control_after = fake->polls + 1;
	EQUAL(run(fake, 1000 * MS), 0);
	EQUAL(fake->forward.control_ready, 1);
	CHECK(fake->now_ns - start < 2 * MS);
	fake->control_after = 0;
	EQUAL(run(fake, MS), 0);
	EQUAL(fake->forward.control_ready, 0);
	done(fake);
}

TEST(a_port_that_died_ends_the_run)
{
	static const struct { int error; enum xskd_wakeup_error counter; } errors[] = {
		{ ENXIO, XSKD_ERROR_ENXIO }, { EINVAL, XSKD_ERROR_OTHER }, { EOPNOTSUPP, XSKD_ERROR_OTHER },
		{ EPERM, XSKD_ERROR_OTHER },
	};

	for (size_t i = 0; i < LENGTH(errors); i++) {
		struct fake *fake = scene(XSKD_POLL_ADAPTIVE);

		fake_answer(&fake->ports[1], errors[i].error);
		fake_deliver(&fake->ports[0], 10, 60);
		fake_deliver(&fake->ports[1], 10, 60);
		EQUAL(run(fake, 1000 * MS), errors[i].error);
		EQUAL(fake->counters.turns, 1);
		EQUAL(fake->ports[1].port.error, errors[i].error);
		EQUAL(fake->ports[0].port.error, 0);
		EQUAL(fake->counters.ports[1].wakeup_errors[errors[i].counter], 1);
		EQUAL(fake->ports[0].sent, 10);                 /* the other port had its turn */
		EQUAL(run(fake, MS), errors[i].error);          /* and it stays dead */
		done(fake);
	}
}

TEST(a_refused_rx_wakeup_ends_the_run)
{
	struct fake *fake = scene(XSKD_POLL_ADAPTIVE);

	fake->ports[0].flags[XSKD_FILL] = XDP_RING_NEED_WAKEUP;
	fake->ports[0].rx_answer = ENXIO;
	fake_deliver(&fake->ports[0], 1, 60);
	EQUAL(run(fake, MS), ENXIO);
	EQUAL(fake->ports[0].port.error, ENXIO);
	done(fake);
}

TEST(an_error_of_a_socket_in_poll_ends_the_run)
{
	static const short errors[] = { POLLERR, POLLNVAL };

	for (size_t i = 0; i < LENGTH(errors); i++) {
		struct fake *fake = scene(XSKD_POLL_WAKEUP);

		fake->ports[1].poll_error = errors[i];
		EQUAL(run(fake, MS), ENXIO);
		EQUAL(fake->ports[1].port.error, ENXIO);
		EQUAL(fake->ports[0].port.error, 0);
		done(fake);
	}
}

TEST(a_failed_poll_ends_the_run)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	fake->poll_answer = -ENOMEM;
	EQUAL(run(fake, MS), ENOMEM);
	EQUAL(fake->ports[0].port.error, 0);
	done(fake);
}

/* A whole second of ping-pong between packets and sleeps. */
TEST(a_stream_of_single_packets)
{
	struct fake *fake = scene(XSKD_POLL_ADAPTIVE);

	for (uint32_t i = 1; i <= 1000; i++) {
		EQUAL(fake_deliver(&fake->ports[i % 2], 1, 60), 1);
		EQUAL(run(fake, MS), 0);
		EQUAL(fake->ports[0].sent + fake->ports[1].sent, i);
	}
	EQUAL(fake->counters.sleeps, 1000);
	CHECK(fake->slept_ns > 900 * MS);
	done(fake);
}
