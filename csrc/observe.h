/* SPDX-License-Identifier: Apache-2.0
 *
 * What an operator wants to know of the loop, and the loop does not need: how full its rings get, how large
 * its bursts are, how long its system calls and its packets take.
 *
 * It must cost next to nothing: what every burst does stands here and is a few instructions a burst; what
 * takes a look at the clock is done for one wakeup, and one burst, in XSKD_SAMPLE (observe.c). It must
 * never change what happens to a packet.
 */
#ifndef XSKD_OBSERVE_H
#define XSKD_OBSERVE_H

#include "forward.h"
#include "frames.h"
#include "ring.h"

/* A prime: the calls of a burst come in a pattern, and a sample must not always be the same one of it. */
#define XSKD_SAMPLE 17

/* Histograms whose bucket n holds what is at most 2^(first + n), and more than the bucket before it. */
static inline uint32_t bucket_of(uint64_t value, uint32_t first, uint32_t buckets)
{
	uint32_t n = value > 1 ? 64 - (uint32_t)__builtin_clzll(value - 1) : 0;

	n = n > first ? n - first : 0;
	return n < buckets ? n : buckets - 1;
}

static inline void count_time(uint64_t *times, uint64_t ns)
{
	count(&times[bucket_of(ns, XSKD_TIMES_FIRST, XSKD_TIMES)], 1);
}

static inline void count_batch(uint64_t *batches, uint32_t packets)
{
	count(&batches[bucket_of(packets, 0, XSKD_BATCHES)], 1);
}

/* The same for a burst of the loop, 1 to XSKD_BURST packets, which needs fewer instructions. */
static inline void count_burst(uint64_t *batches, uint32_t packets)
{
	count(&batches[31 - __builtin_clz(2 * packets - 1)], 1);
}

/* How many entries a ring has. Each ring has a range of levels that are no news; only a level outside of it
 * is looked at more closely, and that sets another range. */
void observe_news(struct xskd_port *port, enum xskd_ring_name name, uint32_t level);
static inline void observe(struct xskd_port *port, enum xskd_ring_name name, uint32_t level)
{
	const struct xskd_quiet *quiet = &port->quiet[name];

	if (level - quiet->from > quiet->span)
		observe_news(port, name, level);
}

/* A burst is about to be taken from RX. Now and then its last packet is timed until it has left. */
void observe_sample(struct xskd_port *port, uint64_t since_ns);
static inline void observe_burst(struct xskd_port *port, uint64_t since_ns)
{
	if (port->until_sample && --port->until_sample == 0)
		observe_sample(port, since_ns);
}

/* The kernel has been told to send what came in at `port`: if the timed packet was among it, it has left. */
void observe_sent(struct xskd_port *port);

/* One system call of many, timed. Returns what the call does. */
int observe_wakeup(struct xskd_port *port, enum xskd_direction direction, int (*call)(int fd));

/* Marks, regimes and what getrusage() says, onto the page: many times a second, not in the loop. */
void observe_publish(struct xskd_forward *forward);

#endif
