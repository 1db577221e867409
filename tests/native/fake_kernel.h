/* SPDX-License-Identifier: Apache-2.0
 *
 * A kernel made of plain memory: rings, a UMEM and the other side of each ring, so that the loop can be
 * driven to any state and counted instruction by instruction. It stands in for the functions of
 * csrc/syscalls.h and records what it was asked. The real kernel is tried in tests/kernel.
 *
 * It behaves as copy mode does: a wakeup sends at most a budget and says EAGAIN when there is more, sends
 * only while the completion ring has room, and never trusts a descriptor. It keeps its own record of the
 * frames it has, so a frame that it is given twice is a violation whatever xskd's owner bytes say.
 */
#ifndef FAKE_KERNEL_H
#define FAKE_KERNEL_H

#include <stdbool.h>

#include "../../csrc/forward.h"

#define FAKE_PORTS 2            /* of connect and reflect */
#define FAKE_MOST_PORTS 3       /* of route */
#define FAKE_OFFSET 256         /* where the kernel puts a packet in its frame */
#define FAKE_LONGEST 65536       /* bytes of a packet */
#define FAKE_ANSWERS 64
#define FAKE_NOT_POLLED -1
#define FAKE_WALL_NS 1700000000123456789ull     /* wall clock when ours began */

struct fake_sizes {
	uint32_t frames, frame_size, fill, rx, tx, completion;
	uint32_t start;         /* where all indices begin: just below 2^32 to see them wrap */
	bool shared;            /* all of it in one piece of memory that a forked process shares */
};

struct fake_port {
	struct xskd_port port;
	struct fake *fake;
	uint32_t producer[XSKD_RINGS], consumer[XSKD_RINGS], flags[XSKD_RINGS];
	uint32_t kernel[XSKD_RINGS];    /* the kernel's own index of each ring */
	uint32_t prefetch;      /* FILL entries taken ahead of packets, as a driver does; 0: copy mode */
	uint32_t fill_late;     /* FILL entries taken whose consumer index is not published yet */
	int answers[FAKE_ANSWERS];      /* errnos for the next TX wakeups, in order; then as it goes */
	uint32_t answered, answers_count;
	int rx_answer;          /* of every RX wakeup */
	uint32_t tx_budget;     /* packets sent per wakeup; 0: none are ever sent */
	uint32_t tx_seen;       /* port.tx_shows_late: TX's producer index when the kernel last looked */
	uint32_t tx_calls, rx_calls;
	uint64_t *in_kernel;    /* frames taken from FILL and not yet delivered */
	uint32_t in_kernel_count;
	uint32_t sent;          /* packets that were on the wire */
	short poll_error;       /* POLLERR and the like, always reported */
};

struct fake {
	struct xskd_forward forward;
	struct xskd_umem umem;
	struct xskd_counters counters;
	struct fake_port ports[FAKE_MOST_PORTS];
	uint8_t *has;           /* per frame: the kernel has it */
	uint32_t violations;    /* frames given twice, descriptors that a real kernel would refuse */
	uint32_t delivered;     /* packets so far; each carries its number */
	uint32_t unrouted;      /* of them, those that `on_arrival` gave nothing to go by */
	void (*on_arrival)(struct fake_port *port, uint32_t number, uint8_t *packet, uint32_t length);
	void (*on_wire)(struct fake_port *port, const uint8_t *packet, uint32_t length);
	uint64_t now_ns, tick_ns;       /* every look at the clock takes a tick */
	uint64_t usage[6];      /* what xskd_sys_usage says */
	uint32_t polls, now_calls;
	uint64_t slept_ns, timeout_ns;  /* all of it, and of the last poll */
	int poll_answer;        /* -errno of every poll, 0: as it goes */
	short polled[FAKE_MOST_PORTS];       /* events the last poll asked for, or FAKE_NOT_POLLED */
	uint32_t control_after; /* control_fd is readable from this poll on; 0: never */
	int (*instead_of_wakeup_tx)(int fd);    /* NULL: fake_wakeup_tx */
	size_t shared_bytes;    /* from here on, if it is shared */
};

/* Two ports, what arrives on one leaves by the other (connect), or each by itself (reflect); three, and it says in
 * front of each packet (route). */
struct fake *fake_new(const struct fake_sizes *sizes, enum xskd_action action);
void fake_free(struct fake *fake);
/* The next TX wakeup (after those already queued) answers so. */
void fake_answer(struct fake_port *port, int error);
/* Takes frames from FILL until it has so many; the consumer index is published fill_late entries late. */
void fake_take_fill(struct fake_port *port, uint32_t wanted);
/* Delivers up to n packets of `length` bytes in frames from FILL to RX, with multi_buffer in as many as it takes,
 * all of a packet at once or nothing. Returns how many. */
uint32_t fake_deliver(struct fake_port *port, uint32_t n, uint32_t length);
/* The same for one packet that says of itself what it likes: an offset in its frame, length, options. */
bool fake_deliver_odd(struct fake_port *port, uint64_t offset, uint32_t length, uint32_t options);
/* What a good kernel never does: puts one entry on RX or completion as it is, whatever it says. */
void fake_deliver_raw(struct fake_port *port, uint64_t addr, uint32_t length, uint32_t options);
void fake_complete_raw(struct fake_port *port, uint64_t addr);
/* Takes up to n packets from TX and completes their frames at once. Returns how many. */
uint32_t fake_send(struct fake_port *port, uint32_t n);
/* What a TX wakeup does in the kernel. */
int fake_wakeup_tx(int fd);
/* Bytes of a packet in each of its frames but the last. */
uint32_t fake_usable(const struct fake *fake);
/* The byte that packet `number` carries at `offset` when it arrives. */
uint8_t fake_byte(uint32_t number, uint32_t offset);

/* System calls that the loop says it has made, for whatever reason. */
static inline uint64_t wakeups_tx(const struct xskd_port_counters *counters)
{
	return counters->wakeups[XSKD_WAKEUP_NEW] + counters->wakeups[XSKD_WAKEUP_AGAIN] +
	       counters->wakeups[XSKD_WAKEUP_LEFT];
}

static inline uint64_t wakeups_rx(const struct xskd_port_counters *counters)
{
	return counters->wakeups[XSKD_WAKEUP_REFILLED] + counters->wakeups[XSKD_WAKEUP_DRY];
}

#endif
