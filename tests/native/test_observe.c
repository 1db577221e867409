/* SPDX-License-Identifier: Apache-2.0
 *
 * What is watched on the way: levels, batches, times. The clock is the fake kernel's.
 */
#include "scene.h"

#define SAMPLE 17       /* XSKD_SAMPLE in csrc/observe.h */

static uint64_t sum(const uint64_t *counts, int n)
{
	uint64_t all = 0;

	for (int i = 0; i < n; i++)
		all += counts[i];
	return all;
}

static struct xskd_port_counters *counters_of(struct fake *fake, int port)
{
	return &fake->counters.ports[port];
}

TEST(a_burst_is_in_the_bucket_of_its_size)
{
	const struct { uint32_t packets; int bucket; } cases[] = {
		{ 1, 0 }, { 2, 1 }, { 3, 2 }, { 4, 2 }, { 5, 3 }, { 8, 3 }, { 9, 4 }, { 32, 5 }, { 33, 6 }, { 64, 6 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct fake *fake = ready(&usual, XSKD_UNCHANGED);

		fake_deliver(&fake->ports[0], cases[i].packets, 60);
		xskd_forward_turn(&fake->forward);
		EQUAL(counters_of(fake, 0)->rx_batches[cases[i].bucket], 1);
		EQUAL(counters_of(fake, 1)->tx_batches[cases[i].bucket], 1);
		EQUAL(sum(counters_of(fake, 0)->rx_batches, XSKD_BATCHES), 1);
		EQUAL(sum(counters_of(fake, 1)->tx_batches, XSKD_BATCHES), 1);
		done(fake);
	}
}

TEST(a_burst_of_drops_alone_is_no_batch_to_send)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	fake_deliver(&fake->ports[0], 3, 10);
	xskd_forward_turn(&fake->forward);
	EQUAL(counters_of(fake, 0)->rx_batches[2], 1);
	EQUAL(sum(counters_of(fake, 1)->tx_batches, XSKD_BATCHES), 0);
	done(fake);
}

TEST(full_and_empty_are_counted_once_each_time)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *in = counters_of(fake, 0);

	xskd_forward_turn(&fake->forward);      /* all rings begin as empty: now FILL is known to be full */
	EQUAL(in->ring_full[XSKD_FILL], 1);
	for (int round = 1; round <= 3; round++) {
		fake_deliver(&fake->ports[0], 128, 60);
		for (int turn = 0; turn < 10; turn++)
			xskd_forward_turn(&fake->forward);
		EQUAL(in->ring_full[XSKD_RX], round);
		EQUAL(in->ring_empty[XSKD_RX], round);
		EQUAL(in->ring_empty[XSKD_FILL], round);        /* RX had all of it */
		xskd_forward_publish(&fake->forward);           /* which forgets nothing */
	}
	done(fake);
}

TEST(a_tx_ring_that_nobody_empties_gets_full_once)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	fake->ports[1].tx_budget = 0;
	for (int turn = 0; turn < 10; turn++) {
		fake_deliver(&fake->ports[0], 32, 60);
		xskd_forward_turn(&fake->forward);
	}
	EQUAL(counters_of(fake, 1)->ring_full[XSKD_TX], 1);
	xskd_forward_publish(&fake->forward);
	EQUAL(counters_of(fake, 1)->ring_high_water[XSKD_TX], 128);
	done(fake);
}

TEST(the_high_water_mark_stays_until_a_reader_wants_a_new_one)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	uint64_t *mark = &counters_of(fake, 0)->ring_high_water[XSKD_RX];

	fake_deliver(&fake->ports[0], 50, 60);
	xskd_forward_turn(&fake->forward);
	fake_deliver(&fake->ports[0], 20, 60);
	xskd_forward_turn(&fake->forward);
	for (int publish = 0; publish < 3; publish++) {
		xskd_forward_publish(&fake->forward);
		EQUAL(*mark, 50);
	}
	xskd_new_marks(&fake->counters);
	fake_deliver(&fake->ports[0], 20, 60);
	xskd_forward_turn(&fake->forward);
	xskd_forward_publish(&fake->forward);
	EQUAL(*mark, 20);
	xskd_forward_publish(&fake->forward);
	EQUAL(*mark, 20);
	done(fake);
}

TEST(a_ring_that_stays_full_has_a_full_mark_for_every_reader)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	fake->ports[1].tx_budget = 0;
	for (int reader = 0; reader < 3; reader++) {
		for (int turn = 0; turn < 10; turn++) {
			fake_deliver(&fake->ports[0], 64, 60);
			xskd_forward_turn(&fake->forward);
		}
		xskd_forward_publish(&fake->forward);
		EQUAL(counters_of(fake, 1)->ring_high_water[XSKD_TX], 128);
		xskd_new_marks(&fake->counters);
		xskd_forward_publish(&fake->forward);
	}
	done(fake);
}

TEST(one_wakeup_in_so_many_is_timed)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *out = counters_of(fake, 1);

	fake->tick_ns = 3000;   /* a call takes one tick: more than 2^11 ns, at most 2^12 */
	for (int packet = 0; packet < 3 * SAMPLE; packet++) {
		fake_deliver(&fake->ports[0], 1, 60);
		xskd_forward_turn(&fake->forward);
	}
	EQUAL(out->wakeups[XSKD_WAKEUP_NEW], 3 * SAMPLE);
	EQUAL(out->wakeup_tx_times[2], 3);
	EQUAL(sum(out->wakeup_tx_times, XSKD_TIMES), 3);
	EQUAL(out->wakeup_ns[XSKD_DIRECTION_TX], 9000);
	EQUAL(sum(out->wakeup_rx_times, XSKD_TIMES), 0);
	done(fake);
}

TEST(a_call_to_receive_is_timed_apart)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	fake->ports[0].flags[XSKD_FILL] = XDP_RING_NEED_WAKEUP;
	fake->tick_ns = 1024;
	for (int turn = 0; turn < SAMPLE; turn++)
		xskd_forward_turn(&fake->forward);
	EQUAL(counters_of(fake, 0)->wakeups[XSKD_WAKEUP_DRY], SAMPLE);
	EQUAL(counters_of(fake, 0)->wakeup_rx_times[0], 1);     /* at most 1,024 ns */
	EQUAL(counters_of(fake, 0)->wakeup_ns[XSKD_DIRECTION_RX], 1024);
	done(fake);
}

TEST(the_reason_of_a_wakeup_is_what_led_to_it)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *out = counters_of(fake, 1);

	fake->ports[1].tx_budget = 10;
	fake_deliver(&fake->ports[0], 25, 60);
	xskd_forward_turn(&fake->forward);
	EQUAL(out->wakeups[XSKD_WAKEUP_NEW], 1);
	EQUAL(out->wakeups[XSKD_WAKEUP_AGAIN], 2);
	fake->ports[1].tx_budget = 0;
	fake_deliver(&fake->ports[0], 1, 60);
	xskd_forward_turn(&fake->forward);
	xskd_forward_turn(&fake->forward);
	EQUAL(out->wakeups[XSKD_WAKEUP_NEW], 2);
	EQUAL(out->wakeups[XSKD_WAKEUP_LEFT], 1);
	done(fake);
}

/* Turns of so many bursts, each of which takes the clock one tick further. */
static void turns_of_run(struct fake *fake, int turns)
{
	for (int turn = 0; turn < turns; turn++) {
		fake_deliver(&fake->ports[0], 1, 60);
		xskd_forward_run(&fake->forward, 0);
	}
}

TEST(a_packet_is_timed_from_the_look_that_did_not_find_it)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *in = counters_of(fake, 0);

	fake->tick_ns = 100;
	turns_of_run(fake, 4 * SAMPLE);
	CHECK(sum(in->latency, XSKD_TIMES) >= 3);
	EQUAL(in->latency[0], sum(in->latency, XSKD_TIMES));    /* a few ticks */
	EQUAL(sum(counters_of(fake, 1)->latency, XSKD_TIMES), 0);
	done(fake);
}

TEST(a_packet_that_waits_in_rx_is_timed_until_it_has_left)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct xskd_port_counters *in = counters_of(fake, 0);
	uint64_t before;

	fake->tick_ns = 100;
	turns_of_run(fake, 2 * SAMPLE);
	while (fake->ports[0].port.until_sample != 1)
		turns_of_run(fake, 1);
	before = in->latency_ns;
	fake_deliver(&fake->ports[0], 100, 60);         /* two bursts: the timed one is the last of the second */
	xskd_forward_turn(&fake->forward);
	EQUAL(in->latency_ns, before);
	fake->now_ns += 5 * MS;
	xskd_forward_turn(&fake->forward);
	CHECK(in->latency_ns - before >= 5 * MS);
	EQUAL(in->latency[13], 1);      /* more than 2^22 ns, at most 2^23 */
	done(fake);
}

TEST(the_regimes_are_all_the_time_there_is)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	uint64_t began = fake->now_ns;

	fake->forward.control_fd = -1;
	fake->tick_ns = 700;
	for (int i = 0; i < 200; i++) {
		fake_deliver(&fake->ports[0], 1 + i % 7, 60);
		xskd_forward_run(&fake->forward, 50 * US);
		xskd_forward_publish(&fake->forward);
	}
	/* The clock ticks once at the beginning of each run, before anything is spent. */
	EQUAL(sum(fake->counters.regimes_ns, XSKD_REGIMES), fake->now_ns - began - 200 * 700);
	CHECK(fake->counters.regimes_ns[XSKD_REGIME_WORKING] > 0);
	CHECK(fake->counters.regimes_ns[XSKD_REGIME_SPINNING] > 0);
	CHECK(fake->counters.regimes_ns[XSKD_REGIME_WAKING] > 0);
	done(fake);
}

static struct fake *slow;

static int slow_wakeup_tx(int fd)
{
	slow->now_ns += 100 * MS;
	return fake_wakeup_tx(fd);
}

TEST(one_slow_call_does_not_hide_the_work_after_it)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	uint64_t working;

	fake->tick_ns = 500;
	slow = fake;
	fake->instead_of_wakeup_tx = slow_wakeup_tx;
	turns_of_run(fake, 1);                  /* the first call is timed, and counts 17 times */
	xskd_forward_publish(&fake->forward);
	fake->instead_of_wakeup_tx = NULL;
	working = fake->counters.regimes_ns[XSKD_REGIME_WORKING];
	turns_of_run(fake, SAMPLE - 2);
	xskd_forward_publish(&fake->forward);
	CHECK(fake->counters.regimes_ns[XSKD_REGIME_WORKING] > working);
	done(fake);
}

TEST(a_sleep_is_sleeping)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	fake->forward.poll = XSKD_POLL_WAKEUP;
	xskd_forward_run(&fake->forward, 20 * MS);
	xskd_forward_publish(&fake->forward);
	CHECK(fake->counters.regimes_ns[XSKD_REGIME_SLEEPING] >= 19 * MS);
	EQUAL(fake->counters.ports[0].wakeups[XSKD_WAKEUP_SLEEP], 0);
	fake->ports[0].flags[XSKD_FILL] = XDP_RING_NEED_WAKEUP;
	xskd_forward_run(&fake->forward, 20 * MS);
	EQUAL(fake->counters.ports[0].wakeups[XSKD_WAKEUP_SLEEP], 1);
	EQUAL(fake->counters.ports[1].wakeups[XSKD_WAKEUP_SLEEP], 0);
	done(fake);
}

TEST(what_processes_use_adds_up)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	const uint64_t first[6] = { 10, 20, 30, 40, 50, 60 }, second[6] = { 1, 2, 3, 4, 5, 6 };

	memcpy(fake->usage, first, sizeof(first));
	xskd_forward_publish(&fake->forward);
	xskd_forward_publish(&fake->forward);
	memset(fake->forward.used, 0, sizeof(fake->forward.used));      /* a successor's first words */
	memcpy(fake->usage, second, sizeof(second));
	xskd_forward_publish(&fake->forward);
	EQUAL(fake->counters.cpu_ns[XSKD_CPU_USER], 11);
	EQUAL(fake->counters.cpu_ns[XSKD_CPU_SYSTEM], 22);
	EQUAL(fake->counters.context_switches[XSKD_SWITCH_VOLUNTARY], 33);
	EQUAL(fake->counters.context_switches[XSKD_SWITCH_INVOLUNTARY], 44);
	EQUAL(fake->counters.page_faults[XSKD_FAULT_MAJOR], 55);
	EQUAL(fake->counters.page_faults[XSKD_FAULT_MINOR], 66);
	done(fake);
}
