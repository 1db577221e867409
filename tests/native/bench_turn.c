/* SPDX-License-Identifier: Apache-2.0
 *
 * One turn of the loop in full swing, 1,000 times: a burst of 64 arrives on port 0, the turn forwards it,
 * the kernel sends it. Run under callgrind, which counts only inside xskd_forward_turn and not inside the
 * fake kernel's calls (test_instructions.py). usage: bench_turn connect|reflect|route|scatter
 *
 * `route` sends all packets out of one other port, `scatter` each out of another one than the packet before it:
 * the worst that can come.
 */
#include <stdio.h>
#include <string.h>

#include "fake_kernel.h"
#include "routed.h"

#define TURNS 1000

static void scatter(struct fake_port *port, uint32_t number, uint8_t *packet, uint32_t length)
{
	routed_to = (int)(number % FAKE_MOST_PORTS);
	routed_arrival(port, number, packet, length);
}

int main(int argc, char **argv)
{
	const struct fake_sizes sizes = { .frames = 12288, .frame_size = 4096, .fill = 2048, .rx = 2048,
					  .tx = 2048, .completion = 2048 };
	const char *what = argc > 1 ? argv[1] : "connect";
	const bool scattered = !strcmp(what, "scatter");
	enum xskd_action action = !strcmp(what, "route") || scattered ? XSKD_ROUTE :
				  !strcmp(what, "reflect")	      ? XSKD_SWAP_MACS : XSKD_UNCHANGED;
	struct fake *fake = fake_new(&sizes, action);
	uint64_t packets = 0;

	routed_to = 1;
	if (action == XSKD_ROUTE)
		fake->on_arrival = scattered ? scatter : routed_arrival;
	for (int i = 0; i < (int)fake->forward.port_count; i++) {
		fake->ports[i].flags[XSKD_TX] = XDP_RING_NEED_WAKEUP;   /* as in copy mode */
		fake->ports[i].tx_budget = XSKD_BURST;
		xskd_refill(&fake->ports[i].port);
	}
	for (int turn = 0; turn < TURNS; turn++) {
		packets += fake_deliver(&fake->ports[0], XSKD_BURST, 60);
		xskd_forward_turn(&fake->forward);
	}
	printf("%llu\n", (unsigned long long)packets);
	fake_free(fake);
	return packets == TURNS * XSKD_BURST ? 0 : 1;
}
