/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker is killed between any two instructions. A child process does the worker's work over shared memory;
 * this process plays the kernel, and adopts what the child leaves behind.
 *
 * - `looked_at`: the child is stopped after each instruction (ptrace). Here this process adopts, checks, and
 *   puts the shared memory back as it was. That is exactly what a kill would leave, for every instruction.
 * - `killed`: the child really gets SIGKILL after its k-th instruction. A single step takes some 50
 *   microseconds in a virtual machine and the way to k is long, so only some k are tried so.
 * - `generations`: the child runs at full speed beside a kernel that does the same, and gets SIGKILL wherever
 *   it is by then; again and again on the same rings.
 *
 * A system call of a child that is stepped is made by this process, in one piece, as the real kernel would go
 * through with it whatever happens to the caller.
 */
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "adoption.h"

/* With the sanitizers the same work has several times as many instructions, and all else is slower: not every
 * one is looked at. */
#ifdef __SANITIZE_ADDRESS__
#define STRIDE 17
#else
#define STRIDE 1
#endif
#define LONGER (STRIDE > 1 ? 6 : 1)
#define KILLS (STRIDE > 1 ? 5u : 20u)   /* of each scene, by `killed` */
#define GENERATIONS (500 / STRIDE)

#define LONGEST 100     /* bytes an interface may send here, so that frames can be small */
#define LONGER_STILL 1000       /* the same where a packet may have several */

static uint64_t seed;

static uint32_t random_below(uint32_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)((seed >> 16) % n);
}

/* ---- scenes ------------------------------------------------------------------------------------ */

struct scene {
	const char *name;
	enum xskd_action action;
	uint32_t ring, frames;
	void (*prepare)(struct fake *fake);
	void (*work)(struct fake *fake);
	uint32_t bad;           /* packets among those of `prepare` that must be dropped */
	uint32_t refused;       /* of them, those whose frames must be quarantined */
	bool uncounted;         /* the work itself gives packets up: how many are lost is not checked */
	bool several;           /* multi_buffer: of 512 bytes of a frame, 256 are a packet's */
};

static void deliver(struct fake *fake, int port, uint32_t n, uint32_t length)
{
	EQUAL(fake_deliver(&fake->ports[port], n, length), n);
}

static void turn(struct fake *fake)
{
	xskd_forward_turn(&fake->forward);
}

static void two_turns(struct fake *fake)
{
	turn(fake);
	turn(fake);
}

static void some_packets(struct fake *fake)
{
	deliver(fake, 0, 3, 60);
	deliver(fake, 1, 2, 64);
}

/* Runs of several lengths, one of them over the end of the ring, and packets without metadata between them. */
static void packets_for_three(struct fake *fake)
{
	for (int i = 0; i < (int)fake->forward.port_count; i++)
		deliver(fake, i, 8, 60);
}

/* Completions on both ports, room for some of them on FILL, and frames of both kinds on their way. */
static void some_completions(struct fake *fake)
{
	deliver(fake, 0, 5, 60);
	deliver(fake, 1, 2, 60);
	turn(fake);
	deliver(fake, 0, 3, 60);
	deliver(fake, 1, 3, 60);
}

/* The same with FILL as full as it gets: all completions go to the free stack. */
static void completions_without_room(struct fake *fake)
{
	some_packets(fake);
	turn(fake);
}

static void bad_packets(struct fake *fake)
{
	deliver(fake, 0, 1, 13);
	deliver(fake, 0, 1, 60);
	deliver(fake, 0, 1, LONGEST + 1);
	deliver(fake, 0, 2, 60);
	deliver(fake, 0, 1, 1);
	deliver(fake, 1, 2, 0x1ff);
}

static void tx_full(struct fake *fake)
{
	for (int i = 0; i < (int)fake->forward.port_count; i++)
		fake->ports[i].tx_budget = 0;
	deliver(fake, 0, 8, 60);
	two_turns(fake);
	deliver(fake, 0, 3, 60);
	deliver(fake, 1, 2, 60);
}

static void tx_full_for_long(struct fake *fake)
{
	tx_full(fake);
	turn(fake);
	fake->forward.now_ns += 30 * MS;
}

static void no_frame_left(struct fake *fake)
{
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		fake->ports[i].tx_budget = 2;
		deliver(fake, i, 8, 60);
	}
	turn(fake);
}

static void late_kernel(struct fake *fake)
{
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		fake->ports[i].fill_late = 3;
		fake->ports[i].prefetch = 2;
		fake->ports[i].tx_budget = 2;
	}
	some_completions(fake);
}

static void bursts(struct fake *fake)
{
	for (int i = 0; i < 2; i++) {
		deliver(fake, 0, 64, 60);
		deliver(fake, 1, 47, 60);
		if (i == 0)
			turn(fake);
	}
}

/* Of one to four descriptors, in any order; all of it finds room on TX. */
static void several(struct fake *fake)
{
	deliver(fake, 0, 1, 700);
	deliver(fake, 0, 1, 60);
	deliver(fake, 0, 1, 300);
	deliver(fake, 0, 1, 1000);
	deliver(fake, 1, 2, 257);
}

/* Nothing is sent, and TX has room for one of two. */
static void several_and_little_room(struct fake *fake)
{
	for (int i = 0; i < FAKE_PORTS; i++)
		fake->ports[i].tx_budget = 0;
	deliver(fake, 0, 1, 1000);
	deliver(fake, 0, 1, 700);
	deliver(fake, 1, 1, 700);
	turn(fake);
	deliver(fake, 0, 1, 60);
	deliver(fake, 0, 1, 1000);
	deliver(fake, 1, 2, 700);
}

static void bad_ones_of_several(struct fake *fake)
{
	deliver(fake, 0, 1, 1001);
	deliver(fake, 0, 1, 700);
	deliver(fake, 0, 1, 13);
	deliver(fake, 0, 1, 300);
	fake_deliver_odd(&fake->ports[1], FAKE_OFFSET, 100, 2);
	deliver(fake, 1, 1, 300);
}

/* Descriptors of one packet without an end. */
static void descriptors(struct fake *fake, uint32_t n)
{
	while (n-- > 0)
		CHECK(fake_deliver_odd(&fake->ports[0], FAKE_OFFSET, 200, XDP_PKT_CONTD));
}

/* One that has too many, its end, and good ones behind it. */
static void too_many(struct fake *fake)
{
	descriptors(fake, 20);
	CHECK(fake_deliver_odd(&fake->ports[0], FAKE_OFFSET, 200, 0));
	several(fake);
}

/* The rest of one whose beginning is gone already. Twenty-four were delivered, and are none of the packets. */
static void the_rest_of_one(struct fake *fake)
{
	descriptors(fake, 20);
	turn(fake);
	descriptors(fake, 3);
	CHECK(fake_deliver_odd(&fake->ports[0], FAKE_OFFSET, 200, 0));
	several(fake);
}

/* As a user of the library does it: received packets are sent on, given back, and new frames taken. */
static void library(struct fake *fake)
{
	struct xdp_desc held[XSKD_MAX_FRAGMENTS] = { 0 };
	uint32_t n = xskd_receive(&fake->ports[0].port, held, LENGTH(held));

	n -= xskd_transmit(&fake->ports[1].port, held, n - 1);
	xskd_umem_give(&fake->umem, held, LENGTH(held));
	n = xskd_umem_take(&fake->umem, held, 3);
	xskd_umem_give(&fake->umem, held, n);
	xskd_complete(&fake->ports[1].port);
	xskd_refill(&fake->ports[0].port);
}

static void accounts(struct fake *fake)
{
	xskd_forward_publish(&fake->forward);
	xskd_forward_audit(&fake->forward);
}

/* All indices wrap within the work, and each array ends in it. */
static const struct scene scenes[] = {
	{ "connect", XSKD_UNCHANGED, 8, 24, some_packets, turn, .bad = 0 },
	{ "reflect", XSKD_SWAP_MACS, 8, 24, some_packets, turn, .bad = 0 },
	{ "recycle", XSKD_UNCHANGED, 8, 24, some_completions, turn, .bad = 0 },
	{ "recycle to itself", XSKD_SWAP_MACS, 8, 24, some_completions, turn, .bad = 0 },
	{ "complete", XSKD_UNCHANGED, 8, 24, completions_without_room, turn, .bad = 0 },
	{ "two turns", XSKD_UNCHANGED, 8, 24, some_packets, two_turns, .bad = 0 },
	{ "drops", XSKD_UNCHANGED, 8, 24, bad_packets, turn, .bad = 5, .refused = 2 },
	{ "drops of reflect", XSKD_SWAP_MACS, 8, 24, bad_packets, turn, .bad = 5, .refused = 2 },
	{ "TX full", XSKD_UNCHANGED, 8, 32, tx_full, two_turns, .bad = 0 },
	{ "TX full for long", XSKD_UNCHANGED, 8, 32, tx_full_for_long, two_turns, .uncounted = true },
	{ "no frame left", XSKD_UNCHANGED, 8, 16, no_frame_left, two_turns, .bad = 0 },
	{ "late kernel", XSKD_UNCHANGED, 8, 24, late_kernel, two_turns, .bad = 0 },
	{ "library", XSKD_UNCHANGED, 8, 24, some_completions, library, .uncounted = true },
	{ "route", XSKD_ROUTE, 8, 48, some_packets, turn, .bad = 0 },
	{ "route by three", XSKD_ROUTE, 8, 48, packets_for_three, two_turns, .bad = 0 },
	{ "recycle of route", XSKD_ROUTE, 8, 48, some_completions, turn, .bad = 0 },
	{ "drops of route", XSKD_ROUTE, 8, 48, bad_packets, turn, .bad = 5, .refused = 2 },
	{ "TX of route full", XSKD_ROUTE, 8, 48, tx_full, two_turns, .bad = 0 },
	{ "TX of route full for long", XSKD_ROUTE, 8, 48, tx_full_for_long, two_turns, .uncounted = true },
	{ "several", XSKD_UNCHANGED, 16, 48, several, turn, .several = true },
	{ "several of reflect", XSKD_SWAP_MACS, 16, 48, several, two_turns, .several = true },
	{ "several of route", XSKD_ROUTE, 16, 48, several, two_turns, .several = true },
	{ "several of route, some bad", XSKD_ROUTE, 16, 48, bad_ones_of_several, turn, .bad = 3, .refused = 1,
	  .several = true },
	{ "several and little room", XSKD_UNCHANGED, 8, 48, several_and_little_room, two_turns,
	  .several = true },
	{ "several, some bad", XSKD_UNCHANGED, 16, 48, bad_ones_of_several, turn, .bad = 3, .refused = 1,
	  .several = true },
	{ "several for long", XSKD_UNCHANGED, 8, 48, tx_full_for_long, two_turns, .uncounted = true,
	  .several = true },
	{ "several, library", XSKD_UNCHANGED, 16, 48, several, library, .uncounted = true, .several = true },
	{ "too many", XSKD_UNCHANGED, 64, 256, too_many, two_turns, .bad = 21, .several = true },
	{ "the rest of one", XSKD_UNCHANGED, 64, 256, the_rest_of_one, two_turns, .bad = 24, .several = true },
	{ "publish and audit", XSKD_UNCHANGED, 8, 24, some_completions, accounts, .bad = 0 },
};

static const struct scene long_scenes[] = {
	{ "bursts of connect", XSKD_UNCHANGED, 128, 512, bursts, turn, .bad = 0 },
	{ "bursts of reflect", XSKD_SWAP_MACS, 128, 512, bursts, turn, .bad = 0 },
	{ "bursts of route", XSKD_ROUTE, 128, 768, bursts, turn, .bad = 0 },
};

static struct fake *prepared(const struct scene *scene)
{
	const struct fake_sizes sizes = {
		.frames = scene->frames, .frame_size = 512, .fill = scene->ring, .rx = scene->ring,
		.tx = scene->ring, .completion = scene->ring, .start = UINT32_MAX - 6, .shared = true,
	};
	struct fake *fake = wired(&sizes, scene->action);

	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		fake->ports[i].port.max_length = scene->several ? LONGER_STILL : LONGEST;
		fake->ports[i].port.multi_buffer = scene->several;
	}
	scene->prepare(fake);
	return fake;
}

/* ---- a worker, step by step -------------------------------------------------------------------- */

static struct {
	volatile int fd, answer;
} *call;                        /* its system call; shared */

static int ask_parent(int fd)
{
	call->fd = fd;
	kill(getpid(), SIGSTOP);
	return call->answer;
}

static void map_call(void)
{
	if (!call)
		call = mmap(NULL, sizeof(*call), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(call != MAP_FAILED);
}

static pid_t start(struct fake *fake, void (*work)(struct fake *))
{
	int status;
	pid_t child;

	map_call();
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		kill(getpid(), SIGSTOP);
		work(fake);
		_exit(0);
	}
	EQUAL(waitpid(child, &status, 0), child);
	CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	EQUAL(ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_EXITKILL), 0);
	fake->instead_of_wakeup_tx = ask_parent;
	return child;
}

/* One instruction. False: it has finished its work. */
static bool step(pid_t child)
{
	int status;

	EQUAL(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL), 0);
	EQUAL(waitpid(child, &status, 0), child);
	if (WIFEXITED(status)) {
		EQUAL(WEXITSTATUS(status), 0);
		return false;
	}
	CHECK(WIFSTOPPED(status) && (WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGSTOP));
	if (WSTOPSIG(status) == SIGSTOP)
		call->answer = fake_wakeup_tx(call->fd);
	return true;
}

static void end(pid_t child)
{
	int status;

	EQUAL(kill(child, SIGKILL), 0);
	EQUAL(waitpid(child, &status, 0), child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* What to say when a check fails: where the worker was. */
static const char *scene_now;
static long instruction_now = -1;

static void __attribute__((destructor)) say_where(void)
{
	if (instruction_now >= 0)
		fprintf(stderr, "... %s, after instruction %ld\n", scene_now, instruction_now);
}

/* ---- what must hold ---------------------------------------------------------------------------- */

/* Nobody is there, and packets come and go as far as the rings have room. */
static void kernel_goes_on(struct fake *fake)
{
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		uint32_t length = fake->ports[i].port.multi_buffer ? 60 + random_below(4) * 250 : 60;

		fake_deliver(&fake->ports[i], 1 + random_below(3), length);
		fake_send(&fake->ports[i], 1 + random_below(4));
	}
}

static uint64_t on_the_wire(const struct fake *fake)
{
	uint64_t n = 0;

	for (int i = 0; i < (int)fake->forward.port_count; i++)
		n += fake->ports[i].sent;
	return n;
}

/* What all ports have counted as lost with a worker. */
static uint64_t abandoned(const struct fake *fake)
{
	uint64_t n = 0;

	for (int i = 0; i < (int)fake->forward.port_count; i++)
		n += fake->ports[i].port.counters->drops[XSKD_DROP_ABANDONED];
	return n;
}

/* The worker is gone. Its successor finds every frame, no packet leaves twice or altered (wire.h looks), and
 * just those are missing that it said were. */
static void succeed(struct fake *fake, const struct scene *scene, bool kernel_moves)
{
	struct xskd_adoption report;

	fake->instead_of_wakeup_tx = NULL;
	if (kernel_moves)
		kernel_goes_on(fake);
	report = adopt(fake);
	CHECK(report.skipped <= scene->ring);
	if (kernel_moves)
		kernel_goes_on(fake);
	check_places(fake);
	bring_home(fake);
	EQUAL(fake->umem.quarantined, scene->refused);
	if (scene->uncounted)
		return;
	EQUAL(abandoned(fake), report.undone);
	EQUAL(on_the_wire(fake) + scene->bad + fake->unrouted + report.undone, fake->delivered);
}

/* ---- looked at --------------------------------------------------------------------------------- */

/* All that a look changes. */
static struct {
	uint8_t *memory;
	uint32_t next[FAKE_MOST_PORTS][FAKE_MOST_PORTS];
} kept;

static void keep(const struct fake *fake)
{
	if (!kept.memory)
		kept.memory = malloc(fake->shared_bytes);
	memcpy(kept.memory, fake, fake->shared_bytes);
	memcpy(kept.next, wire_next, sizeof(wire_next));
}

static void put_back(struct fake *fake)
{
	memcpy(fake, kept.memory, fake->shared_bytes);
	memcpy(wire_next, kept.next, sizeof(wire_next));
}

static void look(struct fake *fake, const struct scene *scene)
{
	keep(fake);
	for (int kernel_moves = 0; kernel_moves < 2; kernel_moves++) {
		succeed(fake, scene, kernel_moves);
		put_back(fake);
	}
}

/* Returns how many instructions the work has. The kernel moves now and then while it is done. */
static long looked_at(struct fake *fake, const struct scene *scene, void (*work)(struct fake *), long stride)
{
	pid_t child = start(fake, work);
	long instructions = 0;

	scene_now = scene->name;
	for (; step(child); instructions++) {
		instruction_now = instructions;
		if (random_below(300) == 0)
			kernel_goes_on(fake);
		if (instructions % stride == 0)
			look(fake, scene);
	}
	succeed(fake, scene, false);
	instruction_now = -1;
	free(kept.memory);
	kept.memory = NULL;
	return instructions;
}

static void look_at(const struct scene *scene, long stride)
{
	struct fake *fake = prepared(scene);

	CHECK(looked_at(fake, scene, scene->work, stride) > 200);
	fake_free(fake);
}

/* Each third scene, so that no test takes longer than a minute. */
static void short_batches(size_t first)
{
	seed = 2 + first;
	for (int round = 0; round < (STRIDE > 1 ? 1 : 2); round++)
		for (size_t i = first; i < LENGTH(scenes); i += 3)
			look_at(&scenes[i], STRIDE);
}

TEST(every_instruction_of_short_batches)
{
	short_batches(0);
}

TEST(every_instruction_of_other_short_batches)
{
	short_batches(1);
}

TEST(every_instruction_of_more_short_batches)
{
	short_batches(2);
}

TEST(every_instruction_of_whole_bursts)
{
	seed = 3;
	for (size_t i = 0; i < LENGTH(long_scenes); i++)
		look_at(&long_scenes[i], STRIDE * STRIDE);
}

/* ---- killed ------------------------------------------------------------------------------------ */

/* Lets the child do so many instructions of its work, and no more. */
static void cut_off(pid_t child, uint32_t instructions)
{
	while (instructions-- > 0)
		if (!step(child))
			return;
	end(child);
}

TEST(a_worker_is_killed)
{
	seed = 5;
	for (size_t i = 0; i < LENGTH(scenes) * KILLS; i++) {
		const struct scene *scene = &scenes[i / KILLS];
		struct fake *fake = prepared(scene);

		scene_now = scene->name;
		instruction_now = random_below(600 * LONGER);
		cut_off(start(fake, scene->work), (uint32_t)instruction_now);
		succeed(fake, scene, i % 2);
		fake_free(fake);
	}
	instruction_now = -1;
}

static void adoption(struct fake *fake)
{
	struct xskd_adoption report;

	xskd_forward_adopt(&fake->forward, &report);
}

/* The successor is cut off as well: the next one finds what it would have found. (The number of packets lost
 * is in the report of both.) */
TEST(an_adoption_is_cut_off_as_well)
{
	seed = 4;
	for (uint32_t round = 0; round < 60 / STRIDE + 1; round++) {
		struct scene scene = scenes[round % LENGTH(scenes)];
		struct fake *fake = prepared(&scene);

		cut_off(start(fake, scene.work), 100 + random_below(500 * LONGER));
		scene.uncounted = true;
		fake->instead_of_wakeup_tx = NULL;
		forget(fake);
		looked_at(fake, &scene, adoption, STRIDE * 2);
		fake_free(fake);
	}
}

/* ---- again and again --------------------------------------------------------------------------- */

/* A kill comes with the first page fault, if there are any: every second worker has them all before. */
static void turns(struct fake *fake)
{
	volatile uint8_t *memory = (volatile uint8_t *)fake;

	for (size_t at = 0; fake->delivered % 2 && at < fake->shared_bytes; at += 4096)
		memory[at] = memory[at];
	call->fd = -1;                  /* at work */
	for (;;)
		xskd_forward_turn(&fake->forward);
}

/* Long rings, and much on them: the worker is busy for some tens of microseconds, as long as it takes to kill
 * it. Nobody waits for anybody here, so the kernel sends by itself, as with zero-copy. */
static void much_to_do(struct fake *fake)
{
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		struct fake_port *port = &fake->ports[i];

		port->flags[XSKD_TX] = 0;
		fake_send(port, random_below(port->port.rings[XSKD_COMPLETION].size));
		fake_deliver(port, random_below(port->port.rings[XSKD_RX].size), 60);
	}
}

static struct xskd_adoption one_generation(struct fake *fake)
{
	pid_t child;

	much_to_do(fake);
	call->fd = 0;
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);       /* a check that fails must not leave it turning */
		turns(fake);
	}
	while (call->fd == 0)
		sched_yield();
	for (uint32_t n = random_below(30); n > 0; n--)
		kernel_goes_on(fake);
	for (volatile uint32_t pause = random_below(5000); pause > 0; pause--)
		continue;
	end(child);
	kernel_goes_on(fake);
	return adopt(fake);
}

/* One worker after the other is killed somewhere, and the traffic goes on. */
static void generations(enum xskd_action action)
{
	const struct scene scene = { .name = "generations", .action = action, .ring = 1024, .frames = 4608,
				     .prepare = two_turns };
	struct fake *fake = prepared(&scene);
	uint32_t undone = 0, skipped = 0;

	scene_now = scene.name;
	map_call();
	for (instruction_now = 0; instruction_now < GENERATIONS; instruction_now++) {
		struct xskd_adoption report = one_generation(fake);

		undone += report.undone;
		skipped += report.skipped;
	}
	bring_home(fake);
	EQUAL(on_the_wire(fake) + undone + fake->unrouted, fake->delivered);
	EQUAL(abandoned(fake), undone);
	printf("%u packets, %d kills, %u entries had been worked off, %u packets lost\n", fake->delivered,
	       GENERATIONS, skipped, undone);
	instruction_now = -1;
	fake_free(fake);
}

TEST(generations_of_connect)
{
	seed = 6;
	generations(XSKD_UNCHANGED);
}

TEST(generations_of_reflect)
{
	seed = 7;
	generations(XSKD_SWAP_MACS);
}

TEST(generations_of_route)
{
	seed = 8;
	generations(XSKD_ROUTE);
}
