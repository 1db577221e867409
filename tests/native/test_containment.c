/* SPDX-License-Identifier: Apache-2.0
 *
 * A kernel that cannot be believed: what is survived, what ends the worker, and what says which ring it was. What
 * a kernel can do otherwise, libFuzzer finds (fuzz_forward.c); here is each bound, exactly.
 */
#include <errno.h>

#include "scene.h"

#define BEYOND 129u     /* one more entry than a ring of `usual` has */

static int run(struct fake *fake)
{
	return xskd_forward_run(&fake->forward, 0);
}

/* The index of the other side, so that the ring seems to have so many entries. */
static void torn(struct fake_port *port, enum xskd_ring_name name, uint32_t entries)
{
	if (name == XSKD_FILL || name == XSKD_TX)
		port->consumer[name] = port->port.rings[name].own - entries;
	else
		port->producer[name] = port->port.rings[name].own + entries;
}

static void check_corrupt(const struct fake_port *port, enum xskd_ring_name name)
{
	EQUAL(port->port.error, EBADMSG);
	EQUAL(port->port.corrupt, name);
	for (int each = 0; each < XSKD_RINGS; each++)
		EQUAL(port->port.counters->ring_corrupt[each], each == (int)name);
}

/* The loop itself sees it in its next turn, on any ring of any port, whatever else there is to do. */
static void torn_under_way(enum xskd_action action, uint32_t entries, bool busy)
{
	for (int which = 0; which < FAKE_PORTS * XSKD_RINGS; which++) {
		struct fake *fake = ready(&usual, action);
		struct fake_port *port = &fake->ports[which / XSKD_RINGS];

		for (int i = 0; i < FAKE_PORTS; i++)
			fake_deliver(&fake->ports[i], busy ? 10 : 0, 60);
		EQUAL(run(fake), 0);
		for (int i = 0; i < FAKE_PORTS; i++)
			fake_deliver(&fake->ports[i], busy ? 10 : 0, 60);
		torn(port, (enum xskd_ring_name)(which % XSKD_RINGS), entries);
		EQUAL(run(fake), EBADMSG);
		check_corrupt(port, (enum xskd_ring_name)(which % XSKD_RINGS));
		check_frames(fake);
		fake_free(fake);
	}
}

TEST(an_index_that_cannot_be_ends_the_run)
{
	static const uint32_t entries[] = { BEYOND, 0x80000000u, UINT32_MAX };

	for (size_t i = 0; i < LENGTH(entries); i++) {
		torn_under_way(XSKD_UNCHANGED, entries[i], false);
		torn_under_way(XSKD_SWAP_MACS, entries[i], false);
		torn_under_way(XSKD_UNCHANGED, entries[i], true);
	}
}

/* In every slice, also where the loop has no reason to look: FILL of a port that nobody's frames come back to. */
TEST(publishing_looks_at_every_ring)
{
	for (int which = 0; which < FAKE_MOST_PORTS * XSKD_RINGS; which++) {
		struct fake *fake = ready(&usual, XSKD_ROUTE);
		struct fake_port *port = &fake->ports[which / XSKD_RINGS];

		torn(port, (enum xskd_ring_name)(which % XSKD_RINGS), BEYOND);
		EQUAL(xskd_forward_publish(&fake->forward), 0);
		check_corrupt(port, (enum xskd_ring_name)(which % XSKD_RINGS));
		EQUAL(run(fake), EBADMSG);
		check_corrupt(port, (enum xskd_ring_name)(which % XSKD_RINGS));
		fake_free(fake);
	}
}

TEST(a_full_ring_is_believed)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	fake->ports[1].tx_budget = 0;
	EQUAL(fake_deliver(&fake->ports[0], 128, 60), 128);
	for (int i = 0; i < 4; i++)
		EQUAL(run(fake), 0);
	EQUAL(fake_deliver(&fake->ports[0], 128, 60), 128);
	EQUAL(run(fake), 0);
	EQUAL(fake->counters.ports[1].ring_full[XSKD_TX], 1);
	EQUAL(xskd_forward_publish(&fake->forward), 0);
	EQUAL(fake->ports[0].port.error, 0);
	EQUAL(fake->ports[1].port.error, 0);
	done(fake);
}

/* A level that cannot be is none: it may be gone when somebody looks at the page. */
TEST(what_cannot_be_is_no_high_water_mark)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	torn(&fake->ports[0], XSKD_RX, BEYOND);
	EQUAL(run(fake), EBADMSG);
	xskd_forward_publish(&fake->forward);
	EQUAL(fake->counters.ports[0].ring_high_water[XSKD_RX], 0);
	EQUAL(fake->counters.ports[0].ring_full[XSKD_RX], 0);
	fake_free(fake);
}

static void nothing_on_rx(struct fake_port *port)
{
	fake_deliver_raw(port, 1ull << 40, 60, 0);
}

static void crossing_on_rx(struct fake_port *port)
{
	CHECK(fake_deliver_odd(port, 2000, 60, 0));
}

static void nothing_on_completion(struct fake_port *port)
{
	fake_complete_raw(port, 1ull << 40);
}

/* So many wrong entries less one are a kernel's slips; the last one is too many. */
static void wrong_entries(void (*give)(struct fake_port *port), enum xskd_ring_name name, bool several)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);
	struct fake_port *port = &fake->ports[1];

	port->port.multi_buffer = several;
	for (uint32_t i = 1; i < XSKD_WRONG_ENTRIES; i++) {
		give(port);
		EQUAL(run(fake), 0);
	}
	EQUAL(port->port.wrong, XSKD_WRONG_ENTRIES - 1);
	give(port);
	EQUAL(run(fake), EBADMSG);
	check_corrupt(port, name);
	check_frames(fake);
	fake_free(fake);
}

TEST(too_many_wrong_entries_end_the_run)
{
	for (int several = 0; several < 2; several++) {
		wrong_entries(nothing_on_rx, XSKD_RX, several);
		wrong_entries(crossing_on_rx, XSKD_RX, several);
		wrong_entries(nothing_on_completion, XSKD_COMPLETION, several);
	}
}

/* FILL of the other port is full, so completions go to the free stack: another function, the same bound. */
TEST(wrong_completions_that_are_not_recycled_count_as_well)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	for (uint32_t i = 0; i < XSKD_WRONG_ENTRIES; i++) {
		nothing_on_completion(&fake->ports[0]);
		EQUAL(xskd_complete(&fake->ports[0].port), 1);
	}
	check_corrupt(&fake->ports[0], XSKD_COMPLETION);
	fake_free(fake);
}

/* What is wrong with a packet is no fault of the ring. */
TEST(packets_that_cannot_go_are_no_wrong_entries)
{
	static const uint32_t lengths[] = { 1, 13, 1519, 1700 };
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	for (uint32_t i = 0; i < 2 * XSKD_WRONG_ENTRIES; i++) {
		EQUAL(fake_deliver(&fake->ports[0], 1, lengths[i % LENGTH(lengths)]), 1);
		EQUAL(run(fake), 0);
	}
	EQUAL(fake->ports[0].port.wrong, 0);
	done(fake);
}

/* An earlier reason stands: the port ended for it. */
TEST(a_port_that_is_finished_has_one_reason)
{
	struct fake *fake = ready(&usual, XSKD_UNCHANGED);

	fake->ports[0].port.error = ENXIO;
	torn(&fake->ports[0], XSKD_RX, BEYOND);
	EQUAL(run(fake), ENXIO);
	EQUAL(fake->counters.ports[0].ring_corrupt[XSKD_RX], 0);
	fake_free(fake);
}
