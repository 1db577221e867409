/* SPDX-License-Identifier: Apache-2.0
 *
 * One turn of the loop in full swing, 1,000 times: a burst of 64 arrives on port 0, the turn forwards it,
 * the kernel sends it. Run under callgrind, which counts only inside xskd_forward_turn and not inside the
 * fake kernel's calls (test_instructions.py). usage: bench_turn connect|reflect
 */
#include <stdio.h>
#include <string.h>

#include "fake_kernel.h"

#define TURNS 1000

int main(int argc, char **argv)
{
	const struct fake_sizes sizes = { .frames = 12288, .frame_size = 4096, .fill = 2048, .rx = 2048,
					  .tx = 2048, .completion = 2048 };
	enum xskd_action action = argc > 1 && !strcmp(argv[1], "reflect") ? XSKD_SWAP_MACS : XSKD_UNCHANGED;
	struct fake *fake = fake_new(&sizes, action);
	uint64_t packets = 0;

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
