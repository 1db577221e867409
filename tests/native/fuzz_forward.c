/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer against the loop and all that it is made of: a hostile kernel (hostile.h) on one side, a user of the
 * library and a supervisor on the other, all of them led by the input.
 */
#include "laws.h"

static uint32_t packets_among(const struct xdp_desc *held, uint32_t n)
{
	uint32_t packets = 0;

	while (n-- > 0)
		packets += !continues(&held[n]);
	return packets;
}

/* A worker dies between two turns. What it kept for itself is gone, and its successor has to do without. */
static void succeed(void)
{
	struct xskd_adoption report;
	const uint32_t quarantined = hostile.umem.quarantined;

	hostile.held_count = 0;
	hostile.umem.free_count = hostile.umem.held = hostile.umem.quarantined = 0xa5a5a5a5;
	if (xskd_forward_adopt(&hostile.forward, &report)) {
		hostile_begin();
		return;
	}
	LAW(hostile.umem.quarantined == quarantined + report.quarantined);
}

static void library_receives(struct xskd_port *port)
{
	const uint32_t room = SIZE_OF(hostile.held) - hostile.held_count;
	struct xdp_desc *top = hostile.held + hostile.held_count;
	uint32_t n;

	if (room < XSKD_MAX_FRAGMENTS)
		return;
	n = xskd_receive(port, top, XSKD_MAX_FRAGMENTS + any_below(room - XSKD_MAX_FRAGMENTS + 1));
	hostile.received += packets_among(top, n);
	hostile.held_count += n;
}

/* What it holds, with lies about it. */
static void library_transmits(struct xskd_port *port)
{
	const uint64_t before = port->counters->tx_packets;
	uint32_t n = any_below(hostile.held_count + 1), sent;
	struct xdp_desc *from = hostile.held + hostile.held_count - n;

	if (n && any_below(4) == 3)
		from[any_below(n)] = (struct xdp_desc){ any_addr(), any_length(), any_options() };
	sent = xskd_transmit(port, from, n);
	hostile.transmitted += port->counters->tx_packets - before;
	memmove(from, from + sent, (n - sent) * sizeof(*from));
	hostile.held_count -= sent;
}

static void library_acts(void)
{
	struct xskd_port *port = &any_port()->port;
	uint32_t n;

	switch (any_below(6)) {
	case 0:
		n = at_most(any_below(8), SIZE_OF(hostile.held) - hostile.held_count);
		n = xskd_umem_take(&hostile.umem, hostile.held + hostile.held_count, n);
		for (uint32_t i = 0; i < n; i++)
			hostile.held[hostile.held_count++].len = 60;
		break;
	case 1:
		library_receives(port);
		break;
	case 2:
		library_transmits(port);
		break;
	case 3:
		n = any_below(hostile.held_count + 1);
		xskd_umem_give(&hostile.umem, hostile.held + hostile.held_count - n, n);
		hostile.held_count -= n;
		break;
	case 4:
		xskd_complete(port);
		break;
	default:
		xskd_refill(port);
	}
}

/* Somebody looks at packets, and may write what he likes into what he shares with the worker. */
static void capture_changes(void)
{
	struct xskd_capture *capture = &hostile.capture;

	if (any_below(2)) {
		hostile.ring->consumer = any_below(2) ? capture->producer : any_number(8);
		return;
	}
	hostile.forward.capture = NULL;
	hostile.ring->layout_version = XSKD_CAPTURE_LAYOUT;
	hostile.ring->producer = any_below(2) ? 0 : any_number(8);
	if (xskd_capture_open(capture, hostile.ring, XSKD_CAPTURE_HEADER + CAPTURE_SIZE))
		return;
	capture->directions = any_below(4);
	capture->snaplen = any_below(2) ? XSKD_CAPTURE_MAX_LENGTH : any_byte();
	capture->filter_length = any_below(3);
	capture->filter[0] = (struct bpf_insn){ BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)any_number(2) };
	capture->filter[capture->filter_length == 2] = (struct bpf_insn){ BPF_RET | BPF_A, 0, 0, 0 };
	hostile.forward.capture = capture;
}

static void step(void)
{
	switch (any_below(16)) {
	case 0:
		xskd_new_marks(hostile.counters);
		break;
	case 1:
		hostile.now_ns += any_byte() * 1000000ull;
		hostile.forward.now_ns = hostile.now_ns;
		break;
	case 2:
		capture_changes();
		break;
	case 3:
		succeed();
		break;
	case 4:
	case 5:
		library_acts();
		break;
	case 6:
		xskd_forward_turn(&hostile.forward);
		break;
	case 7:
	case 8:
		work();
		break;
	default:
		kernel_acts();
	}
	check_laws();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	hostile_new(data, size);
	hostile_begin();
	while (hostile.at < hostile.end)
		step();
	work();
	hostile_free();
	return 0;
}
