/* SPDX-License-Identifier: Apache-2.0
 *
 * Adoption of rings in every state that a worker may leave behind. The batch that was cut off is made by hand
 * here, from the order of stores that csrc/adopt.c builds on; test_kill.c cuts off the real loop.
 */
#include <errno.h>

#include "adoption.h"

/* How far the worker got. */
enum stage {
	INTENDED,               /* said what it would do */
	CHANGED,                /* slots and owner bytes are written; refill and transmit: slots and marks */
	SUBMITTED,
	OWNED,                  /* refill and transmit: some owner bytes are written after submit */
	RELEASED,               /* all is done but to say so */
	STAGES
};

static const uint32_t starts[] = { 0, 0x7ffffffcu, UINT32_MAX - 40, UINT32_MAX - 2, UINT32_MAX };

/* All there may be at once: packets on RX, completions, frames on TX and free ones, room everywhere. */
static struct fake *scene(uint32_t start)
{
	struct fake_sizes sizes = usual;
	struct fake *fake;

	sizes.start = start;
	fake = wired(&sizes, XSKD_UNCHANGED);
	for (int i = 0; i < FAKE_PORTS; i++) {
		EQUAL(fake_deliver(&fake->ports[i], 60, 60), 60);
		fake->ports[i].tx_budget = 7;
	}
	xskd_forward_turn(&fake->forward);
	for (int i = 0; i < FAKE_PORTS; i++)
		EQUAL(fake_deliver(&fake->ports[i], 20, 60), 20);
	check_frames(fake);
	return fake;
}

/* ---- one batch by hand -------------------------------------------------------------------------- */

struct cut {
	enum operation operation;
	enum xskd_ring_name consuming, producing;
	uint32_t undone, freed; /* per frame, if it was not submitted */
};

static const struct cut cuts[] = {
	{ OPERATION_FORWARD, XSKD_RX, XSKD_TX, 1, 0 },
	{ OPERATION_RECYCLE, XSKD_COMPLETION, XSKD_FILL, 0, 1 },
	{ OPERATION_REFILL, XSKD_RINGS, XSKD_FILL, 0, 0 },
	{ OPERATION_TRANSMIT, XSKD_RINGS, XSKD_TX, 1, 0 },
	{ OPERATION_RECEIVE, XSKD_RX, XSKD_RINGS, 0, 1 },
	{ OPERATION_COMPLETE, XSKD_COMPLETION, XSKD_RINGS, 0, 0 },
};

static uint8_t side(const struct fake_port *port, enum xskd_ring_name name)
{
	return (uint8_t)(name == XSKD_FILL || name == XSKD_RX ? RX_OWNER(port) : TX_OWNER(port));
}

/* The owner of a frame of the batch once it has been through its slot. */
static uint8_t marked(const struct cut *cut, const struct fake_port *to)
{
	switch (cut->operation) {
	case OPERATION_REFILL:
	case OPERATION_COMPLETE:
		return OWNER_FREE;
	case OPERATION_TRANSMIT:
		return OWNER_SENDING;
	case OPERATION_RECEIVE:
		return OWNER_HELD;
	default:
		return side(to, cut->producing);
	}
}

/* The descriptor of entry i of the batch, wherever such a batch has it from. */
static struct xdp_desc batch_entry(struct fake *fake, const struct cut *cut, uint32_t i)
{
	const struct xskd_ring *from = &fake->ports[0].port.rings[cut->consuming % XSKD_RINGS];
	struct xdp_desc desc = { .len = 60 };

	if (cut->consuming == XSKD_RX)
		desc = *ring_desc(from, i);
	else if (cut->consuming == XSKD_COMPLETION)
		desc.addr = *ring_addr(from, i);
	else
		desc.addr = (uint64_t)fake->umem.free[fake->umem.free_count - 1 - i] << 11;
	return desc;
}

static void batch_slots(struct fake *fake, const struct cut *cut, uint32_t n)
{
	struct xskd_port *to = &fake->ports[1].port;

	for (uint32_t i = 0; i < n; i++) {
		struct xdp_desc desc = batch_entry(fake, cut, i);

		if (cut->producing == XSKD_TX)
			*ring_desc(&to->rings[XSKD_TX], i) = desc;
		else if (cut->producing == XSKD_FILL)
			*ring_addr(&to->rings[XSKD_FILL], i) = desc.addr & ~2047ull;
		fake->umem.owner[desc.addr >> 11] = marked(cut, &fake->ports[1]);
	}
}

/* A worker moves n frames from port 0 to port 1, and ends at that stage. */
static void cut_off(struct fake *fake, const struct cut *cut, uint32_t n, enum stage stage)
{
	struct xskd_port *from = &fake->ports[0].port, *to = &fake->ports[1].port;
	bool produces = cut->producing != XSKD_RINGS, consumes = cut->consuming != XSKD_RINGS;

	intend(&fake->umem, cut->operation, from->index, to->index,
	       produces ? to->rings[cut->producing].own : 0);
	if (stage >= CHANGED)
		batch_slots(fake, cut, n);
	if (stage >= SUBMITTED && produces)
		*to->rings[cut->producing].producer += n;
	for (uint32_t i = 0; i < n && stage >= OWNED && !consumes; i++)
		if (stage == RELEASED || i < n / 2)
			fake->umem.owner[batch_entry(fake, cut, i).addr >> 11] =
				side(&fake->ports[1], cut->producing);
	if (stage == RELEASED && consumes)
		*from->rings[cut->consuming].consumer += n;
}

/* What is said about a batch of n that ended at that stage, over what is said if there was none. */
static void check_report(const struct cut *cut, uint32_t n, enum stage stage,
			 const struct xskd_adoption *quiet, const struct xskd_adoption *report)
{
	bool worked_off = cut->consuming != XSKD_RINGS && stage > INTENDED && stage < RELEASED;
	bool never_submitted = stage == CHANGED ||
			       (cut->producing == XSKD_RINGS && cut->operation == OPERATION_RECEIVE && stage);
	bool rx = cut->consuming == XSKD_RX && stage > INTENDED;
	bool tx = cut->producing == XSKD_TX && stage >= SUBMITTED;

	EQUAL(report->skipped, worked_off ? n : 0);
	EQUAL(report->undone, never_submitted ? n * cut->undone : 0);
	EQUAL(report->freed, never_submitted ? n * cut->freed : 0);
	EQUAL(report->waiting, quiet->waiting - (rx ? n : 0));
	EQUAL(report->unsent, quiet->unsent + (tx ? n : 0));
}

static struct xskd_adoption quiet_report(uint32_t start)
{
	struct fake *fake = scene(start);
	struct xskd_adoption report = adopt(fake);

	EQUAL(report.waiting, 40);
	EQUAL(report.unsent, 2 * (60 - 7 * 8));
	EQUAL(report.skipped + report.undone + report.freed, 0);
	bring_home(fake);
	EQUAL(fake->ports[0].sent + fake->ports[1].sent, 160);
	fake_free(fake);
	return report;
}

static void one_cut(uint32_t start, const struct cut *cut, uint32_t n, enum stage stage, bool kernel_moves)
{
	const struct xskd_adoption quiet = quiet_report(start);
	struct fake *fake = scene(start);
	struct xskd_adoption report;
	struct fake_port *to = &fake->ports[1];

	fake->on_wire = NULL;                           /* what `transmit` sends here is no packet */
	cut_off(fake, cut, n, stage);
	if (kernel_moves) {
		fake_take_fill(to, 100);
		fake_deliver(to, 30, 60);
		fake_send(to, 30);
	}
	report = adopt(fake);
	if (!kernel_moves)
		check_report(cut, n, stage, &quiet, &report);
	report = adopt(fake);                           /* once more: there is nothing left to repair */
	EQUAL(report.skipped + report.undone + report.freed, 0);
	bring_home(fake);
	fake_free(fake);
}

TEST(every_batch_at_every_stage)
{
	static const uint32_t sizes[] = { 0, 1, 9, 20 };

	for (size_t i = 0; i < LENGTH(starts) * LENGTH(cuts) * LENGTH(sizes) * STAGES * 2; i++) {
		size_t at = i;
		bool kernel_moves = at % 2;
		enum stage stage = (enum stage)((at /= 2) % STAGES);
		uint32_t n = sizes[(at /= STAGES) % LENGTH(sizes)];
		const struct cut *cut = &cuts[(at /= LENGTH(sizes)) % LENGTH(cuts)];

		one_cut(starts[at / LENGTH(cuts)], cut, n, stage, kernel_moves);
	}
}

/* ---- no batch at all ---------------------------------------------------------------------------- */

TEST(empty_rings_and_untouched_frames)
{
	struct fake *fake = fake_new(&usual, XSKD_UNCHANGED);
	struct xskd_adoption report = adopt(fake);

	EQUAL(report.waiting + report.unsent + report.skipped + report.undone + report.freed, 0);
	EQUAL(fake->umem.free_count, 1024);
	EQUAL(fake->umem.free[1023], 0);                /* the first to be taken, as after a reset */
	EQUAL(fake->ports[0].port.refilled, 0);
	bring_home(fake);
	fake_free(fake);
}

/* Everything in a ring, and nothing anywhere else. */
TEST(full_rings)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);
	struct xskd_adoption report;
	struct xdp_desc held[128];

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < FAKE_PORTS; i++) {
			EQUAL(fake_deliver(&fake->ports[i], 128, 60), 128);
			EQUAL(xskd_receive(&fake->ports[i].port, held, 128), 128);
			EQUAL(xskd_transmit(&fake->ports[1 - i].port, held, 128), 128);
			EQUAL(fake_send(&fake->ports[1 - i], 128), round ? 0 : 128);
			EQUAL(xskd_refill(&fake->ports[i].port), 128);
		}
	}
	for (int i = 0; i < FAKE_PORTS; i++) {
		EQUAL(fake_deliver(&fake->ports[i], 128, 60), 128);
		EQUAL(xskd_refill(&fake->ports[i].port), 128);
	}
	report = adopt(fake);
	EQUAL(report.waiting, 256);
	EQUAL(report.unsent, 256);
	EQUAL(fake->umem.free_count, 0);
	for (int i = 0; i < FAKE_PORTS * XSKD_RINGS; i++)
		EQUAL(fake->counters.ports[i / XSKD_RINGS].ring_entries[i % XSKD_RINGS], 128);
	EQUAL(fake->ports[0].port.refilled, 128);       /* the kernel may not have been asked to look */
	bring_home(fake);
	EQUAL(fake->ports[0].sent + fake->ports[1].sent, fake->delivered);
	fake_free(fake);
}

TEST(held_frames_become_free)
{
	struct fake *fake = scene(0);
	struct xdp_desc held[16];
	struct xskd_adoption report;

	EQUAL(xskd_receive(&fake->ports[0].port, held, 10), 10);
	EQUAL(xskd_umem_take(&fake->umem, held, 6), 6);
	report = adopt(fake);
	EQUAL(report.freed, 16);
	EQUAL(report.undone, 0);
	bring_home(fake);
	fake_free(fake);
}

/* The slots before FILL's consumer index still name frames that have long been elsewhere. */
TEST(a_late_fill_consumer_index_says_nothing)
{
	struct fake *fake = wired(&usual, XSKD_UNCHANGED);

	for (int i = 0; i < 30; i++) {
		fake->ports[0].fill_late = fake->ports[1].fill_late = (uint32_t)i * 4;
		fake_deliver(&fake->ports[0], 30, 60);
		fake_deliver(&fake->ports[1], 10, 60);
		xskd_forward_turn(&fake->forward);
		adopt(fake);
	}
	bring_home(fake);
	EQUAL(fake->ports[0].sent + fake->ports[1].sent, fake->delivered);
	fake_free(fake);
}

TEST(an_audit_that_was_cut_off)
{
	struct fake *fake = scene(0);

	for (uint32_t i = 0; i < fake->umem.free_count / 2; i++)
		fake->umem.owner[fake->umem.free[i]] = OWNER_FREE | OWNER_SEEN;
	adopt(fake);
	bring_home(fake);
	fake_free(fake);
}

TEST(a_sequence_that_was_left_odd_is_even_again)
{
	struct fake *fake = scene(0);

	fake->counters.sequence |= 1;
	xskd_forward_publish(&fake->forward);
	EQUAL(fake->counters.sequence % 2, 0);
	done(fake);
}

/* A stale intent would give a frame to the kernel that has long come back: there must be none. */
TEST(no_operation_leaves_its_intent)
{
	struct fake *fake = scene(UINT32_MAX - 40);
	struct xskd_port *port = &fake->ports[0].port;
	uint64_t *intent = fake->umem.intent;
	struct xdp_desc held[64];
	uint32_t n;

	xskd_forward_turn(&fake->forward);
	EQUAL(*intent, 0);
	fake_deliver(&fake->ports[0], 10, 60);
	EQUAL(n = xskd_receive(port, held, 64), 10);
	EQUAL(*intent, 0);
	EQUAL(xskd_transmit(&fake->ports[1].port, held, n), n);
	EQUAL(*intent, 0);
	CHECK(fake_send(&fake->ports[1], 10));
	CHECK(xskd_complete(&fake->ports[1].port));
	EQUAL(*intent, 0);
	CHECK(xskd_refill(port));
	EQUAL(*intent, 0);
	check_frames(fake);
	fake_free(fake);
}

/* ---- what cannot be ---------------------------------------------------------------------------- */

/* Adopts what contradicts itself in so many frames; the loop goes on with the rest. */
static struct xskd_adoption adopt_doubtful(struct fake *fake, uint32_t quarantined)
{
	struct xskd_adoption report, again;

	forget(fake);
	EQUAL(xskd_forward_adopt(&fake->forward, &report), 0);
	EQUAL(report.quarantined, quarantined);
	EQUAL(fake->umem.quarantined, quarantined);
	EQUAL(xskd_forward_publish(&fake->forward), 0);
	forget(fake);
	EQUAL(xskd_forward_adopt(&fake->forward, &again), 0);
	EQUAL(again.quarantined, 0);
	EQUAL(fake->umem.quarantined, quarantined);
	for (int i = 0; i < FAKE_PORTS; i++)
		fake->ports[i].tx_budget = 64;
	for (int i = 0; i < 20; i++)
		xskd_forward_turn(&fake->forward);
	EQUAL(fake->umem.quarantined, quarantined);
	EQUAL(xskd_forward_audit(&fake->forward), 0);
	EQUAL(xskd_forward_publish(&fake->forward), 0);
	return report;
}

static struct xdp_desc *rx_entry(struct fake *fake, uint32_t i)
{
	return ring_desc(&fake->ports[0].port.rings[XSKD_RX], i);
}

TEST(entries_of_rx_that_contradict)
{
	struct fake *fake = scene(UINT32_MAX - 45);
	uint32_t free_frame = fake->umem.free[0];

	rx_entry(fake, 3)->addr = (uint64_t)free_frame << 11;
	rx_entry(fake, 7)->addr = ring_desc(&fake->ports[1].port.rings[XSKD_RX], 0)->addr;
	rx_entry(fake, 9)->addr = rx_entry(fake, 8)->addr;
	rx_entry(fake, 11)->addr = UINT64_MAX;
	adopt_doubtful(fake, 3);
	EQUAL(fake->umem.owner[free_frame], OWNER_QUARANTINED);
	/* Two and both of the same: entries 3, 7, 8, 9 and 11 of one ring, the first of the other. */
	EQUAL(fake->counters.ports[0].drops[XSKD_DROP_INVALID], 5);
	EQUAL(fake->counters.ports[1].drops[XSKD_DROP_INVALID], 1);
	fake_free(fake);
}

TEST(entries_of_completion_and_tx_that_contradict)
{
	struct fake *fake = scene(UINT32_MAX - 45);
	struct xskd_ring *completion = &fake->ports[0].port.rings[XSKD_COMPLETION];
	struct xskd_ring *tx = &fake->ports[1].port.rings[XSKD_TX];

	fake->on_wire = NULL;                           /* what is on TX will be sent, whatever it names */
	*ring_addr(completion, 2) = (uint64_t)fake->umem.free[0] << 11;
	*ring_addr(completion, 4) = *ring_addr(completion, 5);
	*ring_addr(completion, 6) = 1024 * 2048;
	ring_desc(tx, (uint32_t)-1)->addr = (uint64_t)fake->umem.free[1] << 11;
	ring_desc(tx, (uint32_t)-2)->addr = ring_desc(tx, (uint32_t)-3)->addr;
	adopt_doubtful(fake, 4);
	EQUAL(fake->counters.ports[0].completion_invalid, 4);
	EQUAL(fake->counters.ports[1].completion_invalid, 3);
	fake_free(fake);
}

/* A batch was cut off, and among its entries the kernel had named a frame of TX that it still has. It must
 * not become free with those of the batch. */
TEST(a_frame_that_is_not_of_the_batch_is_not_undone)
{
	for (enum stage stage = CHANGED; stage <= SUBMITTED; stage++) {
		struct fake *fake = scene(UINT32_MAX - 45);
		uint64_t others = ring_desc(&fake->ports[1].port.rings[XSKD_TX], (uint32_t)-1)->addr;
		struct xskd_adoption report;

		cut_off(fake, &cuts[0], 4, stage);
		rx_entry(fake, 4)->addr = others;
		report = adopt_doubtful(fake, 1);
		EQUAL(report.undone, stage == CHANGED ? 4 : 0);
		EQUAL(report.skipped, 5);
		EQUAL(fake->umem.owner[others >> 11], OWNER_QUARANTINED);
		fake_free(fake);
	}
}

/* Submitted slots that name what they cannot: nothing but our own memory gone wrong. */
TEST(a_refill_that_contradicts)
{
	struct fake *fake = scene(0);
	struct xskd_ring *fill = &fake->ports[1].port.rings[XSKD_FILL];

	cut_off(fake, &cuts[2], 5, SUBMITTED);
	*ring_addr(fill, 1) = rx_entry(fake, 0)->addr & ~2047ull;
	*ring_addr(fill, 2) = UINT64_MAX;
	adopt_doubtful(fake, 1);
	fake_free(fake);
}

TEST(owner_bytes_that_mean_nothing)
{
	for (uint32_t byte = 0; byte < 256; byte++) {
		bool known = byte <= 3 || byte == 0x20 || byte == 0x40 || byte == 0x41 || byte == 0x80 ||
			     byte == 0x81;
		struct fake *fake = scene(0);

		for (uint32_t i = 0; i < 8; i++)
			fake->umem.owner[fake->umem.free[i]] = (uint8_t)byte;
		forget(fake);
		EQUAL(xskd_forward_adopt(&fake->forward, &(struct xskd_adoption){ 0 }), 0);
		EQUAL(fake->umem.quarantined, known && byte != 2 ? 0 : 8);
		check_frames(fake);
		fake_free(fake);
	}
}

/* ---- what must be refused ------------------------------------------------------------------------ */

/* The rings, the owner bytes and the intent are as they were. */
static void refused(struct fake *fake, int error)
{
	uint8_t owner[1024];
	uint32_t indices[FAKE_PORTS][2 * XSKD_RINGS];
	uint64_t intent = *fake->umem.intent;
	struct xskd_adoption report;

	memcpy(owner, fake->umem.owner, sizeof(owner));
	for (int i = 0; i < FAKE_PORTS; i++) {
		memcpy(indices[i], fake->ports[i].producer, sizeof(indices[i]) / 2);
		memcpy(indices[i] + XSKD_RINGS, fake->ports[i].consumer, sizeof(indices[i]) / 2);
	}
	EQUAL(xskd_forward_adopt(&fake->forward, &report), error);
	EQUAL(memcmp(owner, fake->umem.owner, sizeof(owner)), 0);
	for (int i = 0; i < FAKE_PORTS; i++) {
		EQUAL(memcmp(indices[i], fake->ports[i].producer, sizeof(indices[i]) / 2), 0);
		EQUAL(memcmp(indices[i] + XSKD_RINGS, fake->ports[i].consumer, sizeof(indices[i]) / 2), 0);
	}
	EQUAL(*fake->umem.intent, intent);
}

TEST(torn_indices_are_refused)
{
	static const uint32_t jumps[] = { 129, 1000, 0x80000000u, UINT32_MAX };

	for (size_t i = 0; i < LENGTH(jumps) * FAKE_PORTS * XSKD_RINGS; i++) {
		struct fake *fake = scene(UINT32_MAX - 40);
		struct fake_port *port = &fake->ports[i % FAKE_PORTS];
		enum xskd_ring_name name = (enum xskd_ring_name)(i / FAKE_PORTS % XSKD_RINGS);

		port->producer[name] = port->consumer[name] + jumps[i / FAKE_PORTS / XSKD_RINGS];
		refused(fake, EBADMSG);
		fake_free(fake);
	}
}

TEST(intents_that_mean_nothing_are_refused)
{
	static const uint64_t wrong[] = {
		OPERATIONS, 0xff, UINT64_MAX, 1ull << 63, 1ull << INTENT_INDEX, 1 << INTENT_FROM,
		OPERATION_FORWARD | 2 << INTENT_FROM, OPERATION_FORWARD | 2 << INTENT_TO,
		OPERATION_COMPLETE | 1 << 24,
		OPERATION_REFILL | 1ull << INTENT_INDEX,        /* more than a ring's length ago */
		OPERATION_FORWARD | 0x7fffffffull << INTENT_INDEX,
	};

	for (size_t i = 0; i < LENGTH(wrong); i++) {
		struct fake *fake = scene(UINT32_MAX - 400);

		*fake->umem.intent = wrong[i];
		refused(fake, EBADMSG);
		fake_free(fake);
	}
}

TEST(ports_that_do_not_belong_together_are_refused)
{
	struct fake *fake = scene(0);
	struct xskd_umem other = fake->umem;

	fake->forward.port_count = 0;
	refused(fake, EINVAL);
	fake->forward.port_count = XSKD_MAX_PORTS + 1;
	refused(fake, EINVAL);
	fake->forward.port_count = FAKE_PORTS;
	fake->ports[1].port.index = 0;
	refused(fake, EINVAL);
	fake->ports[1].port.index = 1;
	fake->ports[1].port.umem = &other;
	refused(fake, EINVAL);
	fake->ports[1].port.umem = &fake->umem;
	adopt(fake);
	fake_free(fake);
}
