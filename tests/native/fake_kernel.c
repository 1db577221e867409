/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_kernel.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../../csrc/frames.h"
#include "../../csrc/ring.h"
#include "../../csrc/syscalls.h"

#define SHARED_MAX (4u << 20)    /* bytes */

static struct fake *current;    /* one at a time: the loop's system calls have only an fd to go by */
static uint8_t *shared;         /* the next one's memory, NULL: the heap */
static size_t shared_used;

/* ---- making one -------------------------------------------------------------------------------- */

/* The loop may run in another process at the same time. */
static uint32_t load(const uint32_t *index)
{
	return __atomic_load_n(index, __ATOMIC_ACQUIRE);
}

static void store(uint32_t *index, uint32_t value)
{
	__atomic_store_n(index, value, __ATOMIC_RELEASE);
}

static void *zeroed(size_t n, size_t size)
{
	void *memory = shared + shared_used;

	if (!shared)
		return calloc(n, size);
	shared_used += (n * size + 63) & ~63ull;
	if (shared_used > SHARED_MAX)
		abort();
	return memory;
}

static void unshare(void)
{
	if (shared)
		munmap(shared, SHARED_MAX);
	shared = NULL;
	shared_used = 0;
}

static void ring_new(struct fake_port *fake, enum xskd_ring_name name, uint32_t size, size_t entry,
		     uint32_t start)
{
	struct xskd_ring *ring = &fake->port.rings[name];

	fake->producer[name] = fake->consumer[name] = fake->kernel[name] = start;
	*ring = (struct xskd_ring){
		.producer = &fake->producer[name], .consumer = &fake->consumer[name],
		.flags = &fake->flags[name], .entries = zeroed(size, entry), .size = size, .own = start,
	};
}

static void port_new(struct fake *fake, uint32_t index, const struct fake_sizes *sizes)
{
	struct fake_port *port = &fake->ports[index];

	port->fake = fake;
	ring_new(port, XSKD_FILL, sizes->fill, sizeof(uint64_t), sizes->start);
	ring_new(port, XSKD_RX, sizes->rx, sizeof(struct xdp_desc), sizes->start);
	ring_new(port, XSKD_TX, sizes->tx, sizeof(struct xdp_desc), sizes->start);
	ring_new(port, XSKD_COMPLETION, sizes->completion, sizeof(uint64_t), sizes->start);
	port->flags[XSKD_TX] = XDP_RING_NEED_WAKEUP;    /* as copy mode has it, always */
	port->port.umem = &fake->umem;
	port->port.counters = &fake->counters.ports[index];
	port->port.fd = (int)index;
	port->port.index = index;
	port->port.max_length = 1518;
	port->tx_budget = 32;
	port->tx_seen = sizes->start;
	port->in_kernel = zeroed(sizes->frames, sizeof(uint64_t));
	fake->forward.ports[index] = &port->port;
}

struct fake *fake_new(const struct fake_sizes *sizes, enum xskd_action action)
{
	struct fake *fake;
	struct xskd_umem *umem;

	if (sizes->shared)
		shared = mmap(NULL, SHARED_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		abort();
	fake = zeroed(1, sizeof(*fake));
	umem = &fake->umem;
	umem->frames = sizes->frames;
	umem->frame_size = sizes->frame_size;
	umem->frame_shift = (uint32_t)__builtin_ctz(sizes->frame_size);
	umem->area = zeroed(sizes->frames, sizes->frame_size);
	umem->owner = zeroed(sizes->frames, 1);
	umem->free = zeroed(sizes->frames, sizeof(uint32_t));
	umem->intent = &fake->counters.intent;
	fake->has = zeroed(sizes->frames, 1);
	xskd_umem_reset(umem);
	fake->forward.port_count = action == XSKD_ROUTE ? FAKE_MOST_PORTS : FAKE_PORTS;
	for (uint32_t i = 0; i < fake->forward.port_count; i++) {
		port_new(fake, i, sizes);
		fake->forward.egress[i] = action == XSKD_UNCHANGED ? FAKE_PORTS - 1 - i : i;
	}
	fake->forward.action = action;
	fake->forward.control_fd = -1;
	fake->forward.counters = &fake->counters;
	fake->now_ns = fake->tick_ns = 1000;
	fake->shared_bytes = shared_used;
	current = fake;
	return fake;
}

void fake_free(struct fake *fake)
{
	current = NULL;
	if (fake->shared_bytes) {
		unshare();
		return;
	}
	for (uint32_t i = 0; i < FAKE_MOST_PORTS; i++) {
		for (int name = 0; name < XSKD_RINGS; name++)
			free(fake->ports[i].port.rings[name].entries);
		free(fake->ports[i].in_kernel);
	}
	free(fake->umem.area);
	free(fake->umem.owner);
	free(fake->umem.free);
	free(fake->has);
	free(fake);
}

/* ---- who has a frame, by the kernel's own record ------------------------------------------------ */

static void frame_comes(struct fake *fake, uint64_t addr)
{
	uint64_t frame = addr >> fake->umem.frame_shift;

	if (frame >= fake->umem.frames || fake->has[frame])
		fake->violations++;
	else
		fake->has[frame] = 1;
}

static void frame_goes(struct fake *fake, uint64_t addr)
{
	fake->has[addr >> fake->umem.frame_shift] = 0;
}

/* What the kernel's own check of a TX descriptor in aligned mode asks for, but for its options. */
static bool acceptable(const struct fake *fake, const struct xdp_desc *desc)
{
	const struct xskd_umem *umem = &fake->umem;

	return desc->addr < (uint64_t)umem->frames << umem->frame_shift && desc->len &&
	       (desc->addr & (umem->frame_size - 1)) + desc->len <= umem->frame_size;
}

/* ---- packets in -------------------------------------------------------------------------------- */

/* The number comes first, so that it is found again wherever a swap has put it. */
uint8_t fake_byte(uint32_t number, uint32_t offset)
{
	return offset < 4 ? (uint8_t)(number >> (8 * offset)) : (uint8_t)(number * 31 + offset * 7);
}

void fake_take_fill(struct fake_port *fake, uint32_t wanted)
{
	const struct xskd_ring *ring = &fake->port.rings[XSKD_FILL];
	uint32_t lag;

	while (fake->in_kernel_count < wanted && fake->kernel[XSKD_FILL] != load(&fake->producer[XSKD_FILL])) {
		uint64_t addr = ((uint64_t *)ring->entries)[fake->kernel[XSKD_FILL]++ & ring_mask(ring)];

		if (addr & (fake->fake->umem.frame_size - 1))
			fake->fake->violations++;
		frame_comes(fake->fake, addr);
		fake->in_kernel[fake->in_kernel_count++] = addr;
	}
	lag = fake->kernel[XSKD_FILL] - fake->consumer[XSKD_FILL];
	if (lag > fake->fill_late)
		store(&fake->consumer[XSKD_FILL], fake->kernel[XSKD_FILL] - fake->fill_late);
}

void fake_deliver_raw(struct fake_port *fake, uint64_t addr, uint32_t length, uint32_t options)
{
	const struct xskd_ring *ring = &fake->port.rings[XSKD_RX];

	((struct xdp_desc *)ring->entries)[fake->kernel[XSKD_RX]++ & ring_mask(ring)] =
		(struct xdp_desc){ .addr = addr, .len = length, .options = options };
	store(&fake->producer[XSKD_RX], fake->kernel[XSKD_RX]);
}

static bool rx_has_room(const struct fake_port *fake)
{
	return fake->kernel[XSKD_RX] - load(&fake->consumer[XSKD_RX]) < fake->port.rings[XSKD_RX].size;
}

bool fake_deliver_odd(struct fake_port *fake, uint64_t offset, uint32_t length, uint32_t options)
{
	uint64_t addr;

	fake_take_fill(fake, 1 + fake->prefetch);
	if (!fake->in_kernel_count || !rx_has_room(fake))
		return false;
	addr = fake->in_kernel[--fake->in_kernel_count];
	frame_goes(fake->fake, addr);
	for (uint32_t i = 0; i < length && offset + i < fake->fake->umem.frame_size; i++)
		fake->fake->umem.area[addr + offset + i] = fake_byte(fake->fake->delivered, i);
	if (fake->fake->on_arrival && offset + length <= fake->fake->umem.frame_size)
		fake->fake->on_arrival(fake, fake->fake->delivered, fake->fake->umem.area + addr + offset, length);
	fake->fake->delivered++;
	fake_deliver_raw(fake, addr + offset, length, options);
	return true;
}

uint32_t fake_usable(const struct fake *fake)
{
	return fake->umem.frame_size - FAKE_OFFSET;
}

/* The next packet, with what may stand in front of it. */
static const uint8_t *make_packet(struct fake_port *fake, uint32_t length)
{
	static uint8_t room[FAKE_OFFSET + FAKE_LONGEST];
	uint8_t *packet = room + FAKE_OFFSET;

	if (length > FAKE_LONGEST)
		abort();
	for (uint32_t i = 0; i < length; i++)
		packet[i] = fake_byte(fake->fake->delivered, i);
	memset(room, 0, FAKE_OFFSET);
	if (fake->fake->on_arrival)
		fake->fake->on_arrival(fake, fake->fake->delivered, packet, length);
	return packet;
}

/* As many frames as it takes, and RX shows all of them at once. */
static bool deliver_packet(struct fake_port *fake, uint32_t length)
{
	const struct xskd_ring *ring = &fake->port.rings[XSKD_RX];
	const uint32_t usable = fake_usable(fake->fake), needed = (length + usable - 1) / usable;
	const uint8_t *packet;

	fake_take_fill(fake, needed + fake->prefetch);
	if (fake->in_kernel_count < needed ||
	    ring->size - (fake->kernel[XSKD_RX] - load(&fake->consumer[XSKD_RX])) < needed)
		return false;
	packet = make_packet(fake, length);
	for (uint32_t done = 0, n; done < length; done += n) {
		uint64_t addr = fake->in_kernel[--fake->in_kernel_count];
		const uint32_t before = done ? 0 : FAKE_OFFSET;

		n = length - done < usable ? length - done : usable;
		frame_goes(fake->fake, addr);
		memcpy(fake->fake->umem.area + addr + FAKE_OFFSET - before, packet + done - before, before + n);
		((struct xdp_desc *)ring->entries)[fake->kernel[XSKD_RX]++ & ring_mask(ring)] =
			(struct xdp_desc){ .addr = addr + FAKE_OFFSET, .len = n,
					   .options = done + n < length ? XDP_PKT_CONTD : 0 };
	}
	fake->fake->delivered++;
	store(&fake->producer[XSKD_RX], fake->kernel[XSKD_RX]);
	return true;
}

uint32_t fake_deliver(struct fake_port *fake, uint32_t n, uint32_t length)
{
	const bool several = fake->port.multi_buffer && length;
	uint32_t done = 0;

	while (done < n && (several ? deliver_packet(fake, length) :
				      fake_deliver_odd(fake, FAKE_OFFSET, length, 0)))
		done++;
	return done;
}

/* ---- packets out ------------------------------------------------------------------------------- */

void fake_complete_raw(struct fake_port *fake, uint64_t addr)
{
	const struct xskd_ring *ring = &fake->port.rings[XSKD_COMPLETION];

	((uint64_t *)ring->entries)[fake->kernel[XSKD_COMPLETION]++ & ring_mask(ring)] = addr;
	store(&fake->producer[XSKD_COMPLETION], fake->kernel[XSKD_COMPLETION]);
}

static bool tx_pending(const struct fake_port *fake)
{
	return fake->kernel[XSKD_TX] != load(&fake->producer[XSKD_TX]);
}

static const struct xdp_desc *tx_at(const struct fake_port *fake, uint32_t index)
{
	const struct xskd_ring *tx = &fake->port.rings[XSKD_TX];

	return (const struct xdp_desc *)tx->entries + (index & ring_mask(tx));
}

/* How far TX goes; an old kernel looks, and tells how far it is, only after all that it saw the last time. */
static uint32_t tx_look(struct fake_port *fake)
{
	if (fake->port.tx_shows_late && fake->kernel[XSKD_TX] != fake->tx_seen)
		return fake->tx_seen;
	store(&fake->consumer[XSKD_TX], fake->kernel[XSKD_TX]);
	return fake->tx_seen = load(&fake->producer[XSKD_TX]);
}

/* Descriptors of the packet at the front of TX; 0: there is none. A part of one must never be seen there. */
static uint32_t tx_packet(struct fake_port *fake)
{
	const uint32_t pending = tx_look(fake) - fake->kernel[XSKD_TX];

	for (uint32_t i = 0; i < pending; i++) {
		const uint32_t options = tx_at(fake, fake->kernel[XSKD_TX] + i)->options;

		if (options == 0 && i < XSKD_MAX_FRAGMENTS)
			return i + 1;
		if (options != XDP_PKT_CONTD || !fake->port.multi_buffer)
			break;
	}
	fake->fake->violations += pending > 0;
	return pending > 0;
}

/* One descriptor from TX to `packet`; returns its bytes. */
static uint32_t take_one(struct fake_port *fake, uint8_t *packet)
{
	const struct xdp_desc desc = *tx_at(fake, fake->kernel[XSKD_TX]++);

	if (!fake->port.tx_shows_late)
		store(&fake->consumer[XSKD_TX], fake->kernel[XSKD_TX]);
	if (!acceptable(fake->fake, &desc)) {   /* gone without a completion, as in some kernels */
		fake->fake->violations++;
		return 0;
	}
	frame_comes(fake->fake, desc.addr);
	memcpy(packet, fake->fake->umem.area + desc.addr, desc.len);
	frame_goes(fake->fake, desc.addr);
	fake_complete_raw(fake, desc.addr);
	return desc.len;
}

/* Takes one packet from TX, if there is one and its completions have room; `refused`: by the driver. */
static bool send_one(struct fake_port *fake, bool refused)
{
	static uint8_t packet[XSKD_MAX_FRAGMENTS * 4096];
	const uint32_t n = tx_packet(fake);
	uint32_t length = 0;

	if (n == 0 || fake->kernel[XSKD_COMPLETION] + n - load(&fake->consumer[XSKD_COMPLETION]) >
		      fake->port.rings[XSKD_COMPLETION].size)
		return false;
	for (uint32_t i = 0; i < n; i++)
		length += take_one(fake, packet + length);
	if (!refused && length) {
		fake->sent++;
		if (fake->fake->on_wire)
			fake->fake->on_wire(fake, packet, length);
	}
	return true;
}

uint32_t fake_send(struct fake_port *fake, uint32_t n)
{
	uint32_t done = 0;

	while (done < n && send_one(fake, false))
		done++;
	return done;
}

/* ---- system calls ------------------------------------------------------------------------------ */

void fake_answer(struct fake_port *fake, int error)
{
	fake->answers[fake->answers_count++ % FAKE_ANSWERS] = error;
}

uint64_t xskd_sys_now_ns(void)
{
	current->now_calls++;
	return current->now_ns += current->tick_ns;
}

uint64_t xskd_sys_wall_ns(void)
{
	return FAKE_WALL_NS + current->now_ns;
}

int xskd_sys_wakeup_tx(int fd)
{
	return current->instead_of_wakeup_tx ? current->instead_of_wakeup_tx(fd) : fake_wakeup_tx(fd);
}

int fake_wakeup_tx(int fd)
{
	struct fake_port *fake = &current->ports[fd];

	fake->tx_calls++;
	if (fake->answered != fake->answers_count) {
		int error = fake->answers[fake->answered++ % FAKE_ANSWERS];

		if (error == EBUSY && !send_one(fake, true))
			return EAGAIN;          /* no room to complete what it would refuse */
		if (error)
			return error;
	}
	fake_send(fake, fake->tx_budget);
	tx_look(fake);
	return tx_pending(fake) ? EAGAIN : 0;
}

int xskd_sys_wakeup_rx(int fd)
{
	current->ports[fd].rx_calls++;
	return current->ports[fd].rx_answer;
}

/* POLLIN: something in RX; POLLOUT: TX at most half full. */
static short events_of(const struct fake_port *fake)
{
	uint32_t tx = fake->producer[XSKD_TX] - fake->consumer[XSKD_TX];
	short events = fake->poll_error;

	if (fake->producer[XSKD_RX] != fake->consumer[XSKD_RX])
		events |= POLLIN;
	if (tx <= fake->port.rings[XSKD_TX].size / 2)
		events |= POLLOUT;
	return events;
}

void xskd_sys_usage(uint64_t used[6])
{
	memcpy(used, current->usage, sizeof(current->usage));
}

int xskd_sys_poll(struct pollfd *fds, uint32_t n, uint64_t timeout_ns)
{
	int ready = 0;

	current->polls++;
	current->timeout_ns = timeout_ns;
	if (current->poll_answer)
		return current->poll_answer;
	for (uint32_t i = 0; i < n - 1; i++) {
		const struct fake_port *fake = &current->ports[i];

		current->polled[i] = fds[i].fd < 0 ? FAKE_NOT_POLLED : fds[i].events;
		if (fds[i].fd < 0)
			continue;
		if (fake->port.poll_sends)
			(void)xskd_sys_wakeup_tx(fds[i].fd);
		fds[i].revents = (short)(events_of(fake) & (fds[i].events | POLLERR | POLLNVAL));
		ready += fds[i].revents != 0;
	}
	if (current->control_after && current->polls >= current->control_after && fds[n - 1].fd >= 0) {
		fds[n - 1].revents = POLLIN;
		ready++;
	}
	if (!ready) {
		current->now_ns += timeout_ns;
		current->slept_ns += timeout_ns;
	}
	return ready;
}
