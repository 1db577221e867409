/* SPDX-License-Identifier: Apache-2.0
 *
 * The system calls of the loop as test_model.py wants them answered: it plays the kernel in Python, between two
 * calls, and only says here what a wakeup answers and what time it is.
 */
#include <string.h>

#include "../../csrc/syscalls.h"

int model_tx_answer, model_rx_answer;   /* errnos */
uint64_t model_now_ns;

uint64_t xskd_sys_now_ns(void)
{
	return model_now_ns;
}

uint64_t xskd_sys_wall_ns(void)
{
	return model_now_ns;
}

int xskd_sys_wakeup_tx(int fd)
{
	(void)fd;
	return model_tx_answer;
}

int xskd_sys_wakeup_rx(int fd)
{
	(void)fd;
	return model_rx_answer;
}

int xskd_sys_poll(struct pollfd *fds, uint32_t n, uint64_t timeout_ns)
{
	(void)fds;
	(void)n;
	model_now_ns += timeout_ns;
	return 0;
}

void xskd_sys_usage(uint64_t used[6])
{
	memset(used, 0, 6 * sizeof(used[0]));
}
