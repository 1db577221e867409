/* SPDX-License-Identifier: Apache-2.0
 *
 * Every errno as the answer to every call of the loop, at each of the first places it is made: the run ends in
 * time, and either with that errno, which its port keeps, or it is counted and forwarding goes on. Frames are
 * conserved whatever happens. Which errnos real calls return is in tests/kernel/faults/errnos.py; here are all.
 */
#include <errno.h>
#include <poll.h>

#include "wire.h"

#define ERRNOS 134      /* Linux has 133 */
#define PLACES 8
#define PACKETS 20      /* each way, a run */
#define MOST_CALLS 110u /* a second, of an interface that is down: a hundred, and those at once */
#define MOST_RETRIES 1100u      /* a second, of one that has no room: a thousand, and those before it sleeps */

static struct { int error; uint32_t at, calls; bool rest; } refused;

static int refuse_tx(int fd)
{
	const uint32_t n = ++refused.calls;

	return n == refused.at || (refused.rest && n > refused.at) ? refused.error : fake_wakeup_tx(fd);
}

static struct fake *scene(enum xskd_poll poll)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	fake->forward.poll = poll;
	return fake;
}

static struct fake *refusing(int error, uint32_t at, bool rest)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	refused.error = error;
	refused.at = at;
	refused.rest = rest;
	refused.calls = 0;
	fake->instead_of_wakeup_tx = refuse_tx;
	return fake;
}

static bool passes(int error)
{
	return error == EAGAIN || error == EINTR || error == EBUSY || error == ENOBUFS || error == ENOMEM ||
	       error == ENETDOWN;
}

static uint64_t errors_of(const struct fake *fake)
{
	uint64_t n = 0;

	for (int port = 0; port < FAKE_PORTS; port++)
		for (int kind = 0; kind < XSKD_WAKEUP_ERRORS; kind++)
			n += fake->counters.ports[port].wakeup_errors[kind];
	return n;
}

/* Packets both ways, for so many runs of a millisecond; what the first run that failed has said. */
static int traffic(struct fake *fake, int runs)
{
	int error = 0;

	for (int i = 0; i < runs && !error; i++) {
		fake_deliver(&fake->ports[0], PACKETS, 60);
		fake_deliver(&fake->ports[1], PACKETS, 60);
		error = xskd_forward_run(&fake->forward, MS);
	}
	return error;
}

TEST(every_errno_of_a_tx_wakeup_at_every_place)
{
	for (int error = 1; error < ERRNOS; error++) {
		for (uint32_t at = 1; at <= (passes(error) ? PLACES : 2); at++) {
			struct fake *fake = refusing(error, at, false);
			int answer = traffic(fake, PLACES);

			CHECK(refused.calls >= at);
			CHECK(errors_of(fake) > 0);
			EQUAL(answer, passes(error) ? 0 : error);
			if (passes(error)) {
				EQUAL(xskd_forward_run(&fake->forward, 20 * MS), 0);
				EQUAL(fake->ports[0].sent + fake->ports[1].sent, 2 * PACKETS * PLACES);
				check_at_home(fake);
			} else {
				EQUAL(fake->ports[0].port.error + fake->ports[1].port.error, error);
				EQUAL(xskd_forward_run(&fake->forward, MS), error);     /* it stays dead */
			}
			done(fake);
		}
	}
}

/* A kernel that answers so for ever costs a bounded number of calls, with traffic and without. */
TEST(an_errno_that_stays_is_no_reason_to_spin)
{
	for (int error = 1; error < ERRNOS; error++) {
		struct fake *fake = refusing(error, 1, true);
		uint32_t calls;

		if (traffic(fake, 4)) {
			CHECK(refused.calls <= 2);      /* both ports had their turn */
			done(fake);
			continue;
		}
		calls = refused.calls;
		EQUAL(xskd_forward_run(&fake->forward, 1000 * MS), 0);
		CHECK(refused.calls - calls <= 2 * (error == ENETDOWN ? MOST_CALLS : MOST_RETRIES));
		refused.rest = false;
		EQUAL(xskd_forward_run(&fake->forward, 20 * MS), 0);
		EQUAL(fake->ports[0].sent + fake->ports[1].sent, 2 * PACKETS * 4);
		EQUAL(xskd_forward_run(&fake->forward, MS), 0);         /* what was sent comes home */
		check_at_home(fake);
		done(fake);
	}
}

TEST(every_errno_of_an_rx_wakeup)
{
	for (int error = 1; error < ERRNOS; error++) {
		struct fake *fake = scene(XSKD_POLL_WAKEUP);

		fake->ports[0].flags[XSKD_FILL] = XDP_RING_NEED_WAKEUP;
		fake->ports[0].rx_answer = error;
		EQUAL(traffic(fake, 3), passes(error) ? 0 : error);
		EQUAL(fake->ports[0].port.error, passes(error) ? 0 : error);
		CHECK(errors_of(fake) > 0 && fake->ports[0].rx_calls <= 20);
		fake->ports[0].rx_answer = 0;
		done(fake);
	}
}

/* An interruption is none (csrc/syscalls.c); any other errno of poll() is nobody's port, and ends the run. */
TEST(every_errno_of_poll)
{
	for (int error = 1; error < ERRNOS; error++) {
		struct fake *fake = scene(XSKD_POLL_WAKEUP);

		fake->poll_answer = -error;
		EQUAL(traffic(fake, 3), error);
		EQUAL(fake->polls, 1);
		EQUAL(fake->ports[0].port.error + fake->ports[1].port.error, 0);
		fake->poll_answer = 0;
		EQUAL(traffic(fake, 3), 0);
		done(fake);
	}
}

static struct fake *down(void)
{
	struct fake *fake = refusing(ENETDOWN, 1, true);

	fake_deliver(&fake->ports[0], 10, 60);
	return fake;
}

TEST(an_interface_that_is_down_is_asked_ever_less_often)
{
	struct fake *fake = down();

	EQUAL(xskd_forward_run(&fake->forward, 1000 * MS), 0);
	CHECK(refused.calls >= 90 && refused.calls <= MOST_CALLS);
	CHECK(fake->counters.sleeps <= 2 * MOST_CALLS);
	EQUAL(fake->counters.ports[1].wakeup_errors[XSKD_ERROR_ENETDOWN], refused.calls);
	done(fake);
}

TEST(traffic_for_an_interface_that_is_down_does_not_ask_more_often)
{
	struct fake *fake = down();

	for (int i = 0; i < 100; i++) {
		fake_deliver(&fake->ports[0], 1, 60);
		EQUAL(xskd_forward_run(&fake->forward, 10 * MS), 0);
	}
	CHECK(refused.calls <= MOST_CALLS);
	done(fake);
}

TEST(an_interface_that_is_up_again_gets_what_waited_within_ten_milliseconds)
{
	struct fake *fake = down();

	EQUAL(xskd_forward_run(&fake->forward, 1000 * MS), 0);
	refused.rest = false;
	EQUAL(xskd_forward_run(&fake->forward, 11 * MS), 0);
	EQUAL(fake->ports[1].sent, 10);
	EQUAL(fake->ports[1].port.down, 0);
	refused.calls = 0;
	for (int i = 0; i < 3; i++) {                           /* and then all at once, as ever */
		fake_deliver(&fake->ports[0], 1, 60);
		EQUAL(xskd_forward_run(&fake->forward, 100 * US), 0);
		EQUAL(fake->ports[1].sent, 11 + i);
	}
	check_at_home(fake);
	done(fake);
}

/* The other way is not slowed down by it. */
TEST(an_egress_that_is_down_does_not_hold_up_the_other)
{
	struct fake *fake = scene(XSKD_POLL_WAKEUP);

	fake->ports[1].tx_budget = 0;
	for (int i = 0; i < FAKE_ANSWERS; i++)
		fake_answer(&fake->ports[1], ENETDOWN);
	fake_deliver(&fake->ports[0], 10, 60);
	for (int i = 0; i < 20; i++) {
		fake_deliver(&fake->ports[1], 5, 60);
		EQUAL(xskd_forward_run(&fake->forward, 100 * US), 0);
		EQUAL(fake->ports[0].sent, 5 * (i + 1));
	}
	done(fake);
}
