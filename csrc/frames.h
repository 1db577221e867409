/* SPDX-License-Identifier: Apache-2.0
 *
 * Who owns a frame, what is being done to many of them, and how a counter is written: the few lines that
 * the loop (forward.c), its ports (port.c), the accounts (frames.c) and a successor (adopt.c) share. The rule
 * behind the owner bytes is told in forward.h.
 */
#ifndef XSKD_FRAMES_H
#define XSKD_FRAMES_H

#include <linux/if_ether.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "forward.h"
#include "ring.h"

/* Newer than Debian 12's header: another descriptor of the same packet follows. */
#ifndef XDP_PKT_CONTD
#define XDP_PKT_CONTD (1u << 0)
#endif

/* How long packets may wait in RX for room on a full TX ring before they are dropped as tx_full, and how long
 * the beginning of a packet for its end. Long enough to ride out a peer that pauses for a few scheduler ticks,
 * short enough that a dead egress does not turn its ingress into a store of stale packets. */
#define DEADLINE_NS (20 * 1000 * 1000ull)

/* Owner bytes. The port's index is in the low bits of the two sides. */
#define OWNER_FREE 0x00u
#define OWNER_HELD 0x01u
#define OWNER_QUARANTINED 0x02u
#define OWNER_SENDING 0x03u     /* held, and in a TX slot: only inside xskd_transmit */
#define OWNER_SEEN 0x20u        /* beside FREE, only while the audit walks the free stack */
#define OWNER_RX_SIDE 0x40u
#define OWNER_TX_SIDE 0x80u
#define OWNER_PORT 0x0fu        /* the bits of the port's index */

enum { NOWHERE = XSKD_MAX_PORTS };      /* in the place of an egress: there is none */

/* What a worker is doing to a batch of frames. It stands in *umem->intent, in the page that outlives the
 * worker, from before the first owner byte changes until after the last index has moved; then 0. Nothing
 * else lets a successor tell a batch that was submitted from one that was cut off. */
enum operation {
	OPERATION_NONE,
	OPERATION_FORWARD,      /* RX of `from` to TX of `to` */
	OPERATION_RECYCLE,      /* completion of `from` to FILL of `to` */
	OPERATION_REFILL,       /* the free stack to FILL of `to` */
	OPERATION_TRANSMIT,     /* held frames to TX of `to` */
	OPERATION_RECEIVE,      /* RX of `from` to held */
	OPERATION_COMPLETE,     /* completion of `from` to the free stack */
	OPERATIONS
};

/* The intent in one word, so that one store writes it: the operation in the low byte, then the two ports, and
 * in the high half the producing ring's own index (FILL, TX) when the batch began. */
#define INTENT_FROM 8
#define INTENT_TO 16
#define INTENT_INDEX 32

/* Nothing moves across this at compile time. That is all the order that a killed process needs: what it had
 * executed is seen by whoever comes after it, and what it had not executed is not. */
static inline void in_this_order(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static inline void intend(struct xskd_umem *umem, enum operation operation, uint32_t from, uint32_t to,
			  uint32_t index)
{
	uint64_t intent = (uint64_t)index << INTENT_INDEX | to << INTENT_TO | from << INTENT_FROM | operation;

	in_this_order();
	__atomic_store_n(umem->intent, intent, __ATOMIC_RELAXED);
	in_this_order();
}

/* The order of a batch is: intend, slots and owner bytes, submit, release, settle. */
static inline void settle(struct xskd_umem *umem)
{
	in_this_order();
	__atomic_store_n(umem->intent, OPERATION_NONE, __ATOMIC_RELAXED);
	in_this_order();
}

/* Single writer, many readers in other processes: a relaxed store so that nobody ever reads half a value. */
static inline void count(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static inline void set(uint64_t *gauge, uint64_t value)
{
	__atomic_store_n(gauge, value, __ATOMIC_RELAXED);
}

static inline uint32_t at_most(uint32_t n, uint32_t limit)
{
	return n < limit ? n : limit;
}

static inline void put_free(struct xskd_umem *umem, uint32_t frame)
{
	umem->owner[frame] = OWNER_FREE;
	umem->free[umem->free_count++] = frame;
}

/* What the inner loops need of a UMEM, in registers: a store to an owner byte could change anything else
 * in memory as far as the compiler knows, so it would read the UMEM's fields again for every packet. */
struct frames {
	uint8_t *owner;
	uint64_t count, mask;
	uint32_t shift, size;
};

static inline struct frames frames_of(const struct xskd_umem *umem)
{
	return (struct frames){ umem->owner, umem->frames, umem->frame_size - 1, umem->frame_shift,
				umem->frame_size };
}

/* Length and options as one number: with any option set it is longer than every limit. Where packets
 * have one descriptor, we set none and ask the kernel for none, so one comparison answers for both. */
static inline uint64_t length_of(const struct xdp_desc *desc)
{
	return desc->len | (uint64_t)desc->options << 32;
}

/* A build for tests says a byte here (tests/kernel/hostile). What was in a frame is gone then before the kernel
 * gets it back, so that whoever forwards more than has come in forwards this. */
#ifndef XSKD_POISON
#define XSKD_POISON (-1)
#endif

/* The frames of FILL's next n slots, which are not submitted yet. */
static inline void poison(const struct xskd_umem *umem, const struct xskd_ring *fill, uint32_t n)
{
	for (uint32_t i = 0; XSKD_POISON >= 0 && i < n; i++) {
		uint64_t frame = *ring_addr(fill, i) & ~(uint64_t)(umem->frame_size - 1);

		memset(umem->area + frame, XSKD_POISON, umem->frame_size);
	}
}

/* Does the packet go on in the next descriptor? */
static inline bool continues(const struct xdp_desc *desc)
{
	return desc->options & XDP_PKT_CONTD;
}

/* The frame that an address lies in, also of unaligned ones, which need not be a power of two. The loop has
 * none of those, and is spared the question: it shifts. */
static inline uint64_t frame_number(const struct frames *frames, uint64_t addr)
{
	return __builtin_expect(frames->shift != 0, 1) ? addr >> frames->shift : addr / frames->size;
}

/* As owned() and fits() together, of unaligned frames too. */
static inline bool lies_in(const struct frames *frames, uint64_t addr, uint64_t length, uint8_t owner)
{
	const uint64_t frame = frame_number(frames, addr);

	return frame < frames->count && frames->owner[frame] == owner &&
	       length - 1 < (frame + 1) * frames->size - addr;
}

/* Does an address name a frame that belongs to `owner`? */
static inline bool owned(const struct frames *frames, uint64_t addr, uint8_t owner)
{
	uint64_t frame = addr >> frames->shift;

	return frame < frames->count && frames->owner[frame] == owner;
}

/* Does the packet stay inside its frame? An empty one does not: it is no packet. (The sum of offset and
 * length is never formed: it could overflow.) */
static inline bool fits(const struct frames *frames, uint64_t addr, uint64_t length)
{
	return length - 1 <= (~addr & frames->mask);
}

/* The same, in fewer instructions, for a length that is sendable: neither 0, nor so long that the sum of it
 * and an address inside a UMEM overflows. */
static inline bool inside(const struct frames *frames, uint64_t addr, uint64_t length)
{
	return (addr + length - 1) >> frames->shift == addr >> frames->shift;
}

/* Is it long enough for Ethernet, and short enough for the interface? */
static inline bool sendable(uint64_t length, uint32_t max_length)
{
	return length - ETH_HLEN <= max_length - ETH_HLEN;
}

struct mac {
	uint32_t first;
	uint16_t last;
} __attribute__((packed, may_alias));

static inline void swap_macs(uint8_t *packet)
{
	struct mac *destination = (struct mac *)packet, *source = destination + 1;
	struct mac kept = *destination;

	*destination = *source;
	*source = kept;
}

/* xskd_wakeup_tx for whoever knows how many descriptors wait on TX: at least one. */
int port_wakeup_tx(struct xskd_port *port, uint32_t pending);

/* The other side has done to a ring what no kernel does, and nothing in it can be believed any more: the port
 * is finished, as by an errno. */
void frames_distrust(struct xskd_port *port, enum xskd_ring_name name);
/* An entry of RX or completion that no kernel should give. It does no harm, but it should have been another one,
 * whose frame does not come back: a port bears a few in its life. */
void frames_wrong(struct xskd_port *port, enum xskd_ring_name name);
/* An RX descriptor that is not what it should be: count it, and if it names a frame of this port, put
 * that where nobody uses it again. Only a broken kernel or driver gets here. */
void frames_refuse(struct xskd_port *port, const struct xdp_desc *desc);
/* The second half of it: without counting. */
void frames_quarantine(struct xskd_port *port, const struct xdp_desc *desc);

#endif
