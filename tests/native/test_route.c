/* SPDX-License-Identifier: Apache-2.0
 *
 * Routing: what stands in front of a packet is believed if it is whole and this packet's, and only once; one hop
 * less to go; runs of packets for several ports; one of them that is stuck.
 */
#include <errno.h>
#include <poll.h>

#include "adoption.h"
#include "wire.h"

#define OFFSET 256      /* of packets in their frames */

static struct fake *routed(int to)
{
	routed_to = to;
	return wired(&usual, XSKD_ROUTE);
}

static uint32_t turn(struct fake *fake)
{
	return xskd_forward_turn(&fake->forward);
}

static void deliver(struct fake *fake, int port, int to, uint32_t n, uint32_t length)
{
	routed_to = to;
	EQUAL(fake_deliver(&fake->ports[port], n, length), n);
	routed_to = ROUTED_BY_NUMBER;
}

static uint64_t drops(const struct fake *fake, int port, enum xskd_drop reason)
{
	return fake->counters.ports[port].drops[reason];
}

static uint32_t sent(const struct fake *fake)
{
	return fake->ports[0].sent + fake->ports[1].sent + fake->ports[2].sent;
}

/* The newest packet in RX of port 0. */
static struct xdp_desc *newest(struct fake *fake)
{
	const struct xskd_ring *rx = &fake->ports[0].port.rings[XSKD_RX];

	return (struct xdp_desc *)rx->entries + ((fake->ports[0].kernel[XSKD_RX] - 1) & (rx->size - 1));
}

static uint8_t *packet_of(struct fake *fake, const struct xdp_desc *desc)
{
	return fake->umem.area + desc->addr;
}

/* ---- packets pass ------------------------------------------------------------------------------ */

/* Every burst size from every port, runs of all lengths, both families, rings of several sizes; wire.h looks at
 * every byte, every checksum and the order. */
TEST(each_packet_leaves_by_its_own_port_one_hop_further)
{
	static const uint32_t ring_sizes[] = { 64, 128, 1024 };
	static const uint32_t lengths[] = { 60, 34, 54, 55, 1514, 1518 };

	for (size_t i = 0; i < LENGTH(ring_sizes); i++) {
		const struct fake_sizes sizes = {
			.frames = 12 * ring_sizes[i], .frame_size = 2048, .fill = ring_sizes[i], .rx = ring_sizes[i],
			.tx = ring_sizes[i], .completion = ring_sizes[i], .start = UINT32_MAX - 300,
		};
		struct fake *fake = wired(&sizes, XSKD_ROUTE);

		for (uint32_t n = 1; n <= XSKD_BURST; n++) {
			EQUAL(fake_deliver(&fake->ports[0], n, lengths[n % LENGTH(lengths)]), n);
			EQUAL(fake_deliver(&fake->ports[1], n / 2, 60), n / 2);
			EQUAL(fake_deliver(&fake->ports[2], n / 3, 60), n / 3);
			while (turn(fake))
				check_conserved(fake);
			EQUAL(sent(fake) + fake->unrouted, fake->delivered);
		}
		EQUAL(drops(fake, 0, XSKD_DROP_NO_METADATA) + drops(fake, 1, XSKD_DROP_NO_METADATA) +
		      drops(fake, 2, XSKD_DROP_NO_METADATA), fake->unrouted);
		CHECK(fake->ports[0].sent > 100 && fake->ports[1].sent > 100 && fake->ports[2].sent > 100);
		done(fake);
	}
}

TEST(a_packet_may_leave_where_it_came_in)
{
	struct fake *fake = routed(ROUTED_BY_NUMBER);

	deliver(fake, 2, 2, 5, 60);
	turn(fake);
	EQUAL(fake->ports[2].sent, 5);
	done(fake);
}

TEST(each_egress_is_woken_once_a_turn)
{
	struct fake *fake = routed(ROUTED_BY_NUMBER);

	for (int i = 0; i < 10; i++) {
		deliver(fake, 0, 1 + i % 2, 1, 60);
		deliver(fake, 1, 2, 1, 60);
	}
	turn(fake);
	EQUAL(fake->ports[1].sent, 5);
	EQUAL(fake->ports[2].sent, 15);
	EQUAL(wakeups_tx(&fake->counters.ports[0]), 0);
	EQUAL(wakeups_tx(&fake->counters.ports[1]), 1);
	EQUAL(wakeups_tx(&fake->counters.ports[2]), 1);
	EQUAL(fake->counters.ports[0].rx_batches[4], 1);        /* one burst of 10 */
	EQUAL(fake->counters.ports[2].tx_batches[0], 5);        /* runs of one */
	EQUAL(fake->counters.ports[2].tx_batches[4], 1);        /* and one of ten */
	done(fake);
}

/* Wherever packets go, no port runs out of frames to receive into. */
TEST(frames_come_back_to_whoever_needs_them)
{
	const struct fake_sizes tight = { .frames = 3 * 128 + 3 * 64, .frame_size = 2048, .fill = 128, .rx = 128,
					  .tx = 64, .completion = 128 };
	struct fake *fake = wired(&tight, XSKD_ROUTE);

	for (int i = 0; i < 300; i++) {
		deliver(fake, i / 100, (i / 50) % 3, 64, 60);
		turn(fake);
		check_conserved(fake);
	}
	turn(fake);
	EQUAL(sent(fake), 300 * 64);
	EQUAL(fake->counters.ports[0].fill_starved + fake->counters.ports[1].fill_starved +
	      fake->counters.ports[2].fill_starved, 0);
	done(fake);
}

/* ---- metadata ---------------------------------------------------------------------------------- */

/* One packet, with whatever is done to it or to what stands in front of it: dropped for this reason. */
static void refused(struct fake *fake, enum xskd_drop reason)
{
	const uint64_t before = drops(fake, 0, reason);
	const uint32_t left = sent(fake);

	turn(fake);
	EQUAL(sent(fake), left);
	EQUAL(drops(fake, 0, reason), before + 1);
	check_conserved(fake);
}

TEST(each_bit_of_the_metadata_counts)
{
	struct fake *fake = routed(ROUTED_BY_NUMBER);

	for (uint32_t bit = 0; bit < 8 * META; bit++) {
		deliver(fake, 0, 1, 1, 60);
		packet_of(fake, newest(fake))[-(int)META + (int)bit / 8] ^= (uint8_t)(1 << bit % 8);
		refused(fake, XSKD_DROP_NO_METADATA);
	}
	done(fake);
}

/* Only its first bytes have arrived, or only its last ones; the rest is what was there. */
TEST(torn_metadata)
{
	for (uint32_t whole = 0; whole < META; whole += 4) {
		for (int first = 0; first < 2; first++) {
			struct fake *fake = routed(ROUTED_BY_NUMBER);
			uint8_t *meta;

			deliver(fake, 0, 1, 1, 60);
			meta = packet_of(fake, newest(fake)) - META;
			memset(first ? meta + whole : meta, 0xa5, first ? META - whole : META - 4 - whole);
			if (!first && whole == META - 4)
				meta[0] ^= 1;
			refused(fake, XSKD_DROP_NO_METADATA);
			done(fake);
		}
	}
}

TEST(metadata_of_another_packet)
{
	struct fake *fake = routed(ROUTED_BY_NUMBER);
	uint8_t meta[META];

	deliver(fake, 0, 1, 1, 60);
	memcpy(meta, packet_of(fake, newest(fake)) - META, META);
	turn(fake);
	EQUAL(sent(fake), 1);
	deliver(fake, 0, 1, 1, 61);             /* longer */
	memcpy(packet_of(fake, newest(fake)) - META, meta, META);
	refused(fake, XSKD_DROP_NO_METADATA);
	deliver(fake, 0, 2, 1, 60);             /* to another address */
	memcpy(packet_of(fake, newest(fake)) - META, meta, META);
	refused(fake, XSKD_DROP_NO_METADATA);
	done(fake);
}

TEST(an_egress_that_does_not_exist)
{
	static const uint32_t wrong[] = { 3, 15, 16, 17, 255, 256, 65535 };
	struct fake *fake = routed(ROUTED_BY_NUMBER);

	for (size_t i = 0; i < LENGTH(wrong); i++) {
		deliver(fake, 0, 1, 1, 60);
		routed_meta(packet_of(fake, newest(fake)), 60, packet_of(fake, newest(fake))[14] >> 4, wrong[i]);
		refused(fake, XSKD_DROP_NO_METADATA);
	}
	done(fake);
}

/* Also where all of it is right but the family, or the packet is too short for it. */
TEST(families_that_are_none)
{
	static const struct { uint32_t family, length; } wrong[] = {
		{ 0, 60 }, { 5, 60 }, { 4 | 6 << 8, 60 }, { 65535, 60 }, { 4, 33 }, { 6, 53 }, { 4, 14 }, { 6, 34 },
	};
	struct fake *fake = routed(ROUTED_NOWHERE);

	for (size_t i = 0; i < LENGTH(wrong); i++) {
		EQUAL(fake_deliver(&fake->ports[0], 1, wrong[i].length), 1);
		memset(packet_of(fake, newest(fake)) + 14, 9, wrong[i].length - 14);
		routed_meta(packet_of(fake, newest(fake)), wrong[i].length, wrong[i].family, 1);
		refused(fake, XSKD_DROP_NO_METADATA);
	}
	routed_to = ROUTED_BY_NUMBER;
	done(fake);
}

/* Too near the start of its frame: what would be in front of it is in another one. */
TEST(metadata_does_not_reach_into_another_frame)
{
	for (uint64_t offset = 0; offset <= META; offset++) {
		struct fake *fake = routed(1);

		if (offset < META)
			fake->on_arrival = NULL;
		CHECK(fake_deliver_odd(&fake->ports[0], 512, 60, 0));   /* so that the next one is not the first */
		CHECK(fake_deliver_odd(&fake->ports[0], offset, 60, 0));
		if (offset < META) {
			struct routed to_one = { .family = 4, .egress = 1 };

			routed_write(&to_one, 60, 0, packet_of(fake, newest(fake)));
			routed_meta(packet_of(fake, newest(fake)), 60, 4, 1);
		}
		turn(fake);
		EQUAL(fake->ports[1].sent, offset < META ? 0 : 2);
		EQUAL(drops(fake, 0, XSKD_DROP_NO_METADATA), offset < META ? 2 : 0);
		done(fake);
	}
	routed_to = ROUTED_BY_NUMBER;
}

/* The program never gives them to a worker; a worker that got one would let packets circle for ever. */
TEST(no_hop_left)
{
	struct fake *fake = routed(ROUTED_BY_NUMBER);

	for (int family = 4; family <= 6; family += 2) {
		for (uint8_t hops = 0; hops <= 1; hops++) {
			struct routed to_one = { .family = (uint32_t)family, .egress = 1 };
			uint8_t *packet;

			deliver(fake, 0, 1, 1, 60);
			packet = packet_of(fake, newest(fake));
			routed_write(&to_one, 60, 0, packet);
			packet[family == 4 ? 22 : 21] = hops;
			routed_meta(packet, 60, (uint32_t)family, 1);
			refused(fake, XSKD_DROP_NO_METADATA);
		}
	}
	done(fake);
}

/* All frames have been used and left so, in one of several ways; then all are used again, with packets that are
 * as those before but for their metadata, which has not come. */
static void nothing_stale(void (*use)(struct fake *fake))
{
	const struct fake_sizes few = { .frames = 64, .frame_size = 2048, .fill = 64, .rx = 64, .tx = 64,
					.completion = 64 };
	struct fake *fake = wired(&few, XSKD_ROUTE);

	use(fake);
	for (int i = 0; i < 20; i++) {
		uint32_t left;

		while (turn(fake))
			continue;
		left = sent(fake);
		fake->ports[0].tx_budget = fake->ports[1].tx_budget = fake->ports[2].tx_budget = 64;
		routed_to = ROUTED_NOWHERE;
		for (uint32_t egress = 0; egress < 3; egress++)
			fake_deliver(&fake->ports[egress], 64, 60);
		routed_to = ROUTED_BY_NUMBER;
		turn(fake);
		EQUAL(sent(fake), left);
		check_conserved(fake);
	}
	CHECK(drops(fake, 0, XSKD_DROP_NO_METADATA) >= 64);
	done(fake);
}

/* What arrives without metadata says that it leaves by port 0: so do those before it. */
static void forwarded(struct fake *fake)
{
	deliver(fake, 0, 0, 64, 60);
	turn(fake);
	EQUAL(sent(fake), 64);
}

static void too_long(struct fake *fake)
{
	for (int i = 0; i < 3; i++)
		fake->ports[i].port.max_length = 59;
	deliver(fake, 0, 0, 64, 60);
	turn(fake);
	EQUAL(drops(fake, 0, XSKD_DROP_OVERSIZE), 64);
	for (int i = 0; i < 3; i++)
		fake->ports[i].port.max_length = 1518;
}

static void tx_full_for_long(struct fake *fake)
{
	fake->ports[0].port.rings[XSKD_TX].size = 16;
	fake->ports[0].tx_budget = 0;
	deliver(fake, 0, 0, 64, 60);
	turn(fake);
	turn(fake);
	fake->forward.now_ns += 20 * MS;
	turn(fake);
	EQUAL(drops(fake, 0, XSKD_DROP_TX_FULL), 48);
	fake->ports[0].tx_budget = 64;
	turn(fake);
	fake->ports[0].port.rings[XSKD_TX].size = 64;
}

/* Killed when all frames of a batch had changed their owner, and nothing else had been done to the packets. */
static void cut_off(struct fake *fake)
{
	const struct xskd_ring *rx = &fake->ports[0].port.rings[XSKD_RX], *tx = &fake->ports[0].port.rings[XSKD_TX];

	deliver(fake, 0, 0, 64, 60);
	intend(&fake->umem, OPERATION_FORWARD, 0, 0, tx->own);
	for (uint32_t i = 0; i < 64; i++) {
		*ring_desc(tx, i) = *ring_desc(rx, i);
		fake->umem.owner[ring_desc(rx, i)->addr >> fake->umem.frame_shift] = OWNER_TX_SIDE;
	}
	EQUAL(adopt(fake).undone, 64);
}

TEST(a_packet_of_a_batch_that_was_cut_off_leaves_nothing_stale)
{
	nothing_stale(cut_off);
}

TEST(a_packet_that_was_forwarded_leaves_nothing_stale)
{
	nothing_stale(forwarded);
}

TEST(a_packet_that_was_too_long_leaves_nothing_stale)
{
	nothing_stale(too_long);
}

/* ---- the checksum ------------------------------------------------------------------------------ */

/* What a header's checksum may come to, over all values of the two words that a hop changes: TTL and protocol, and
 * the sum itself. wire_look_routed compares with a full recomputation. */
static void check_checksum(uint8_t *packet, uint32_t ttl, uint32_t identification)
{
	uint8_t *ip = packet + 14;
	uint16_t sum;

	ip[4] = (uint8_t)(identification >> 8);
	ip[5] = (uint8_t)identification;
	ip[8] = (uint8_t)ttl;
	sum = routed_sum(ip);
	ip[10] = (uint8_t)(sum >> 8);
	ip[11] = (uint8_t)sum;
}

static uint32_t checked;
static uint8_t seen[65536];     /* checksums that have come out */

static void look_at_checksum(struct fake_port *port, const uint8_t *packet, uint32_t length)
{
	const uint16_t sum = routed_sum(packet + 14), got = (uint16_t)(packet[24] << 8 | packet[25]);

	EQUAL(got, sum);
	EQUAL(length, 60);
	EQUAL(port->port.index, 1);
	checked++;
	seen[got] = 1;
}

TEST(the_checksum_is_what_a_recomputation_gives)
{
	struct fake *fake = routed(1);
	uint32_t different = 0;

	fake->on_wire = look_at_checksum;
	for (uint32_t i = 0; i < 65536; i++) {
		const struct routed to_one = { .number = i, .family = 4, .egress = 1 };
		uint8_t *packet;

		EQUAL(fake_deliver(&fake->ports[0], 1, 60), 1);
		packet = packet_of(fake, newest(fake));
		routed_write(&to_one, 60, 0, packet);
		check_checksum(packet, 2 + i % 254, i);
		routed_meta(packet, 60, 4, 1);
		turn(fake);
	}
	EQUAL(checked, 65536);
	for (uint32_t sum = 0; sum < 65536; sum++)
		different += seen[sum];
	CHECK(different > 30000 && seen[0] && seen[0xfffe] && !seen[0xffff]);
	done(fake);
}

/* A sender may write the other zero: it stands for the same, and the sum that leaves is right. */
TEST(the_other_zero_of_the_checksum)
{
	struct fake *fake = routed(1);
	const struct routed to_one = { .family = 4, .egress = 1 };
	uint32_t identification = 0;
	uint8_t *packet;

	fake->on_wire = look_at_checksum;
	checked = 0;
	EQUAL(fake_deliver(&fake->ports[0], 1, 60), 1);
	packet = packet_of(fake, newest(fake));
	routed_write(&to_one, 60, 0, packet);
	do
		check_checksum(packet, 64, identification++);
	while (packet[24] || packet[25]);
	packet[24] = packet[25] = 0xff;
	routed_meta(packet, 60, 4, 1);
	turn(fake);
	EQUAL(checked, 1);
	done(fake);
}

/* It is corrected, not computed: what was broken on the way here is still broken when it leaves. */
TEST(a_wrong_checksum_stays_wrong)
{
	struct fake *fake = routed(1);
	uint8_t *packet;

	fake->on_wire = NULL;
	deliver(fake, 0, 1, 1, 50);
	packet = packet_of(fake, newest(fake));
	packet[25] ^= 4;
	turn(fake);
	EQUAL(fake->ports[1].sent, 1);
	CHECK(routed_sum(packet + 14) != (uint16_t)(packet[24] << 8 | packet[25]));
	routed_to = ROUTED_BY_NUMBER;
	done(fake);
}

/* ---- other drops ------------------------------------------------------------------------------- */

TEST(each_bad_packet_has_one_reason)
{
	static const struct { uint64_t offset; uint32_t length, options; enum xskd_drop reason; } odds[] = {
		{ OFFSET, 1, 0, XSKD_DROP_UNDERSIZE }, { OFFSET, 13, 0, XSKD_DROP_UNDERSIZE },
		{ OFFSET, 14, 0, XSKD_DROP_NO_METADATA }, { OFFSET, 1519, 0, XSKD_DROP_OVERSIZE },
		{ OFFSET, 0, 0, XSKD_DROP_INVALID }, { 2048 - 59, 60, 0, XSKD_DROP_INVALID },
		{ OFFSET, UINT32_MAX, 0, XSKD_DROP_INVALID }, { OFFSET, 60, 1u << 31, XSKD_DROP_INVALID },
	};
	static const struct { uint32_t before, after; } places[] = { { 0, 0 }, { 0, 9 }, { 7, 11 }, { 63, 0 } };

	for (size_t i = 0; i < LENGTH(odds) * LENGTH(places); i++) {
		const uint32_t before = places[i % LENGTH(places)].before, after = places[i % LENGTH(places)].after;
		struct fake *fake = routed(1);

		EQUAL(fake_deliver(&fake->ports[0], before, 60), before);
		CHECK(fake_deliver_odd(&fake->ports[0], odds[i / LENGTH(places)].offset,
				       odds[i / LENGTH(places)].length, odds[i / LENGTH(places)].options));
		EQUAL(fake_deliver(&fake->ports[0], after, 60), after);
		turn(fake);
		EQUAL(fake->ports[1].sent, before + after);
		EQUAL(drops(fake, 0, odds[i / LENGTH(places)].reason), 1);
		EQUAL(drops_of(&fake->counters.ports[0]), 1);
		done(fake);
	}
	routed_to = ROUTED_BY_NUMBER;
}

TEST(the_same_frame_twice_in_one_burst)
{
	struct fake *fake = routed(1);

	EQUAL(fake_deliver(&fake->ports[0], 1, 60), 1);
	fake_deliver_raw(&fake->ports[0], newest(fake)->addr, 60, 0);
	turn(fake);
	EQUAL(fake->ports[1].sent, 1);
	EQUAL(drops(fake, 0, XSKD_DROP_INVALID), 1);
	routed_to = ROUTED_BY_NUMBER;
	done(fake);
}

TEST(the_egress_says_what_is_too_long)
{
	struct fake *fake = routed(ROUTED_BY_NUMBER);

	fake->ports[1].port.max_length = 100;
	deliver(fake, 0, 1, 1, 101);
	deliver(fake, 0, 2, 1, 101);
	deliver(fake, 0, 1, 1, 100);
	turn(fake);
	EQUAL(fake->ports[1].sent, 1);
	EQUAL(fake->ports[2].sent, 1);
	EQUAL(drops(fake, 0, XSKD_DROP_OVERSIZE), 1);
	done(fake);
}

/* ---- a port that is stuck ---------------------------------------------------------------------- */

/* TX of port 1 full, its kernel stuck; then in RX of port 0 some for port 1, some for port 2 and so on. */
static struct fake *stuck(void)
{
	struct fake *fake = routed(ROUTED_BY_NUMBER);

	fake->ports[1].tx_budget = 0;
	for (int i = 0; i < 2; i++) {
		deliver(fake, 0, 1, 64, 60);
		turn(fake);
	}
	deliver(fake, 0, 2, 5, 60);
	deliver(fake, 0, 1, 10, 60);
	deliver(fake, 0, 2, 3, 60);
	deliver(fake, 0, 1, 2, 60);
	deliver(fake, 0, 0, 1, 60);
	turn(fake);
	EQUAL(fake->ports[2].sent, 5);          /* what was before it has gone */
	EQUAL(fake->counters.ports[0].tx_blocked, 1);
	EQUAL(fake->ports[1].port.blocked_since_ns, fake->forward.now_ns);
	return fake;
}

TEST(what_is_behind_a_stuck_port_waits_for_a_while)
{
	struct fake *fake = stuck();

	deliver(fake, 2, 0, 7, 60);             /* what comes by other ports does not */
	fake->forward.now_ns += 20 * MS - 1;
	turn(fake);
	EQUAL(fake->ports[0].sent, 7);
	EQUAL(fake->ports[2].sent, 5);
	EQUAL(drops_of(&fake->counters.ports[0]), 0);
	fake->ports[1].tx_budget = 64;
	turn(fake);
	turn(fake);
	EQUAL(fake->ports[1].sent, 128 + 12);
	EQUAL(fake->ports[2].sent, 8);
	EQUAL(fake->ports[0].sent, 8);
	EQUAL(fake->ports[1].port.blocked_since_ns, 0);
	EQUAL(drops_of(&fake->counters.ports[0]), 0);
	done(fake);
}

TEST(after_the_deadline_the_others_go_on)
{
	struct fake *fake = stuck();

	fake->forward.now_ns += 20 * MS;
	turn(fake);
	EQUAL(fake->ports[2].sent, 8);
	EQUAL(fake->ports[0].sent, 1);
	EQUAL(drops(fake, 0, XSKD_DROP_TX_FULL), 12);
	EQUAL(drops_of(&fake->counters.ports[0]), 12);
	EQUAL(fake->counters.ports[0].tx_blocked, 2);   /* turns, not runs */
	for (int i = 0; i < 10; i++) {          /* at once, while it lasts */
		deliver(fake, 0, 1, 4, 60);
		deliver(fake, 0, 2, 4, 60);
		turn(fake);
		EQUAL(fake->ports[2].sent, 8 + 4 * (i + 1));
	}
	EQUAL(drops(fake, 0, XSKD_DROP_TX_FULL), 52);
	done(fake);
}

/* Room for a few at a time is no reason to let everybody wait anew. */
TEST(a_slow_port_does_not_slow_down_the_others)
{
	struct fake *fake = stuck();

	fake->forward.now_ns += 20 * MS;
	turn(fake);
	for (int i = 0; i < 20; i++) {
		EQUAL(fake_send(&fake->ports[1], 2), 2);
		deliver(fake, 0, 1, 10, 60);
		deliver(fake, 0, 2, 10, 60);
		turn(fake);
		EQUAL(fake->ports[2].sent, 8 + 10 * (i + 1));   /* in the same turn */
	}
	EQUAL(fake->counters.ports[1].tx_packets, 128 + 20 * 2);
	EQUAL(drops(fake, 0, XSKD_DROP_TX_FULL), 12 + 20 * 8);
	fake_send(&fake->ports[1], 64);
	turn(fake);
	EQUAL(fake->ports[1].port.blocked_since_ns, 0);         /* half empty: it is well again */
	deliver(fake, 0, 1, 64, 60);
	turn(fake);
	deliver(fake, 0, 1, 1, 60);
	turn(fake);
	EQUAL(drops(fake, 0, XSKD_DROP_TX_FULL), 12 + 20 * 8);  /* a new wait has a new deadline */
	EQUAL(fake->ports[1].port.blocked_since_ns, fake->forward.now_ns);
	done(fake);
}

TEST(a_packet_dropped_at_a_stuck_port_leaves_nothing_stale)
{
	nothing_stale(tx_full_for_long);
}

static void sleep_once(struct fake *fake)
{
	const uint32_t polls = fake->polls;

	fake->forward.poll = XSKD_POLL_WAKEUP;
	while (fake->polls == polls)
		EQUAL(xskd_forward_run(&fake->forward, 100 * US), 0);
}

/* Held up: what has arrived is no news, room at the egress is. Past the deadline arrivals are news again. */
TEST(a_sleeper_waits_for_what_holds_it_up)
{
	struct fake *fake = stuck();

	sleep_once(fake);
	EQUAL(fake->polled[0], 0);
	EQUAL(fake->polled[1], POLLIN | POLLOUT);
	EQUAL(fake->polled[2], POLLIN);
	fake->now_ns += 20 * MS;
	sleep_once(fake);
	EQUAL(drops(fake, 0, XSKD_DROP_TX_FULL), 12);
	EQUAL(fake->polled[0], POLLIN);
	EQUAL(fake->polled[1], POLLIN | POLLOUT);
	fake->ports[1].tx_budget = 64;
	while (turn(fake))
		continue;
	sleep_once(fake);
	for (int i = 0; i < 3; i++)
		EQUAL(fake->polled[i], POLLIN);
	done(fake);
}

/* ---- what is watched, and what survives -------------------------------------------------------- */

/* Whatever the run it was in, one burst in 17 has its last packet timed until its egress was woken. */
TEST(latency_is_sampled)
{
	struct fake *fake = routed(ROUTED_BY_NUMBER);
	uint64_t samples = 0;

	for (int i = 0; i < 17 * 10; i++) {
		fake->forward.looked_ns = fake->now_ns;
		EQUAL(fake_deliver(&fake->ports[0], 8, 60), 8);
		turn(fake);
	}
	for (int i = 0; i < XSKD_TIMES; i++)
		samples += fake->counters.ports[0].latency[i];
	CHECK(samples >= 9 && samples <= 11);
	done(fake);
}

/* As in the other kinds: a ring that ran empty is seen once nothing moves any more. */
TEST(a_tx_ring_is_seen_full_and_empty)
{
	struct fake *fake = stuck();
	struct xskd_port_counters *out = &fake->counters.ports[1];
	const uint64_t empty = out->ring_empty[XSKD_TX];

	EQUAL(out->ring_full[XSKD_TX], 1);
	fake->ports[1].tx_budget = 64;
	while (turn(fake))
		continue;
	EQUAL(out->ring_empty[XSKD_TX], empty + 1);
	for (int i = 0; i < 5; i++)
		turn(fake);
	EQUAL(out->ring_empty[XSKD_TX], empty + 1);
	EQUAL(out->ring_full[XSKD_TX], 1);
	done(fake);
}
