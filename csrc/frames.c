/* SPDX-License-Identifier: Apache-2.0
 *
 * Where every frame is: the free stack, the published gauges and the audit.
 *
 * Nothing here is on a packet's way. The gauges are cheap and taken many times a second; the audit looks at
 * every frame and belongs to quiet moments. Neither changes who owns a frame.
 */
#include "frames.h"

#include <errno.h>

#include "observe.h"
#include "ring.h"

/* All frames free; the first one taken will be frame 0. */
void xskd_umem_reset(struct xskd_umem *umem)
{
	umem->free_count = 0;
	umem->quarantined = 0;
	umem->held = 0;
	*umem->intent = 0;
	for (uint32_t frame = umem->frames; frame-- > 0;)
		put_free(umem, frame);
}

uint32_t xskd_umem_take(struct xskd_umem *umem, struct xdp_desc *held, uint32_t wanted)
{
	uint32_t n = wanted < umem->free_count ? wanted : umem->free_count;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t frame = umem->free[--umem->free_count];

		umem->owner[frame] = OWNER_HELD;
		held[i] = (struct xdp_desc){ .addr = (uint64_t)frame * umem->frame_size };
	}
	umem->held += n;
	return n;
}

/* Frames that the caller does not hold are refused: giving twice gives once. */
uint32_t xskd_umem_give(struct xskd_umem *umem, const struct xdp_desc *held, uint32_t n)
{
	const struct frames frames = frames_of(umem);
	uint32_t given = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (!lies_in(&frames, held[i].addr, 1, OWNER_HELD))
			continue;
		put_free(umem, (uint32_t)frame_number(&frames, held[i].addr));
		given++;
	}
	umem->held -= given;
	return given;
}

void __attribute__((cold)) frames_distrust(struct xskd_port *port, enum xskd_ring_name name)
{
	if (port->error)
		return;
	count(&port->counters->ring_corrupt[name], 1);
	port->corrupt = name;
	port->error = EBADMSG;
}

void __attribute__((noinline, cold)) frames_wrong(struct xskd_port *port, enum xskd_ring_name name)
{
	if (++port->wrong >= XSKD_WRONG_ENTRIES)
		frames_distrust(port, name);
}

void __attribute__((cold)) frames_quarantine(struct xskd_port *port, const struct xdp_desc *desc)
{
	struct xskd_umem *umem = port->umem;
	const struct frames frames = frames_of(umem);

	if (lies_in(&frames, desc->addr, 1, (uint8_t)(OWNER_RX_SIDE | port->index))) {
		umem->owner[frame_number(&frames, desc->addr)] = OWNER_QUARANTINED;
		umem->quarantined++;
		port->rx_side--;
	}
}

void __attribute__((cold)) frames_refuse(struct xskd_port *port, const struct xdp_desc *desc)
{
	count(&port->counters->drops[XSKD_DROP_INVALID], 1);
	frames_wrong(port, XSKD_RX);
	frames_quarantine(port, desc);
}

/* A ring's entries, at most so many. The loop looks at each ring now and then, here it is done to all: none can
 * be corrupt for longer than from one publish to the next. */
static uint32_t level(struct xskd_port *port, enum xskd_ring_name name, uint32_t most)
{
	const struct xskd_ring *ring = &port->rings[name];
	const bool produces = name == XSKD_FILL || name == XSKD_TX;
	const uint32_t used = produces ? ring_used_by_producer(ring) : ring_used_by_consumer(ring);

	if (used > ring->size)
		frames_distrust(port, name);
	return at_most(used, most);
}

/* Rings move while we look, and the kernel publishes what it consumed late; what we gave and did not get
 * back is exact, so every level is bounded by it and the rest is in the kernel. */
static void publish_port(struct xskd_port *port, uint64_t *in)
{
	uint32_t rx = level(port, XSKD_RX, port->rx_side);
	uint32_t fill = level(port, XSKD_FILL, port->rx_side - rx);
	uint32_t completion = level(port, XSKD_COMPLETION, port->tx_side);
	uint32_t tx = level(port, XSKD_TX, port->tx_side - completion);

	set(&port->counters->ring_entries[XSKD_FILL], fill);
	set(&port->counters->ring_entries[XSKD_RX], rx);
	set(&port->counters->ring_entries[XSKD_TX], tx);
	set(&port->counters->ring_entries[XSKD_COMPLETION], completion);
	in[XSKD_PLACE_FILL] += fill;
	in[XSKD_PLACE_RX] += rx;
	in[XSKD_PLACE_TX] += tx;
	in[XSKD_PLACE_COMPLETION] += completion;
	in[XSKD_PLACE_KERNEL] += port->rx_side - fill - rx + port->tx_side - tx - completion;
}

int64_t xskd_forward_publish(struct xskd_forward *forward)
{
	struct xskd_counters *counters = forward->counters;
	const struct xskd_umem *umem = forward->ports[0]->umem;
	uint64_t in[XSKD_PLACES] = { 0 };
	int64_t unaccounted = umem->frames;

	/* Odd, also where a predecessor was killed just here and left it so. */
	__atomic_fetch_or(&counters->sequence, 1, __ATOMIC_ACQ_REL);
	in[XSKD_PLACE_FREE] = umem->free_count;
	in[XSKD_PLACE_HELD] = umem->held;
	in[XSKD_PLACE_QUARANTINED] = umem->quarantined;
	for (uint32_t i = 0; i < forward->port_count; i++)
		publish_port(forward->ports[i], in);
	for (uint32_t place = 0; place < XSKD_PLACES; place++) {
		set(&counters->frames_in[place], in[place]);
		unaccounted -= (int64_t)in[place];
	}
	observe_publish(forward);
	set(&counters->frames, umem->frames);
	set(&counters->frames_unaccounted, (uint64_t)(unaccounted < 0 ? -unaccounted : unaccounted));
	__atomic_fetch_add(&counters->sequence, 1, __ATOMIC_RELEASE);
	return unaccounted;
}

static uint32_t owned_by(const struct xskd_umem *umem, uint8_t owner)
{
	uint32_t n = 0;

	for (uint32_t frame = 0; frame < umem->frames; frame++)
		n += umem->owner[frame] == owner;
	return n;
}

static uint32_t difference(uint32_t a, uint32_t b)
{
	return a > b ? a - b : b - a;
}

/* Entries that a wrong owner gave us, in an RX or completion ring. */
static uint32_t audit_ring(const struct xskd_umem *umem, const struct xskd_ring *ring, uint8_t owner,
			   bool descs)
{
	uint32_t wrong = 0, n = ring_peek(ring, ring->size);

	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = descs ? ring_desc(ring, i)->addr : *ring_addr(ring, i);
		uint64_t frame = addr >> umem->frame_shift;

		wrong += frame >= umem->frames || umem->owner[frame] != owner;
	}
	return wrong;
}

/* Each frame on the free stack is marked as seen, so that one that lies there twice is found. */
static uint32_t audit_free(struct xskd_umem *umem)
{
	uint32_t wrong = 0;

	for (uint32_t i = 0; i < umem->free_count; i++) {
		uint32_t frame = umem->free[i];

		if (frame < umem->frames && umem->owner[frame] == OWNER_FREE)
			umem->owner[frame] = OWNER_FREE | OWNER_SEEN;
		else
			wrong++;
	}
	wrong += owned_by(umem, OWNER_FREE);
	for (uint32_t frame = 0; frame < umem->frames; frame++)
		if (umem->owner[frame] == (OWNER_FREE | OWNER_SEEN))
			umem->owner[frame] = OWNER_FREE;
	return wrong;
}

uint32_t xskd_forward_audit(struct xskd_forward *forward)
{
	struct xskd_umem *umem = forward->ports[0]->umem;
	uint32_t wrong = audit_free(umem);

	wrong += difference(owned_by(umem, OWNER_HELD), umem->held);
	wrong += difference(owned_by(umem, OWNER_QUARANTINED), umem->quarantined);
	for (uint32_t i = 0; i < forward->port_count; i++) {
		const struct xskd_port *port = forward->ports[i];
		uint8_t rx = (uint8_t)(OWNER_RX_SIDE | port->index);
		uint8_t tx = (uint8_t)(OWNER_TX_SIDE | port->index);

		wrong += difference(owned_by(umem, rx), port->rx_side);
		wrong += difference(owned_by(umem, tx), port->tx_side);
		wrong += audit_ring(umem, &port->rings[XSKD_RX], rx, true);
		wrong += audit_ring(umem, &port->rings[XSKD_COMPLETION], tx, false);
	}
	return wrong;
}
