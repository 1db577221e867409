/* SPDX-License-Identifier: Apache-2.0
 *
 * Every system call of the loop, and nothing else. A test or a benchmark links its own version of these
 * few functions and so plays the kernel's part; forward.c cannot tell the difference.
 */
#ifndef XSKD_SYSCALLS_H
#define XSKD_SYSCALLS_H

#include <poll.h>
#include <stdint.h>

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t xskd_sys_now_ns(void);
/* CLOCK_REALTIME in nanoseconds, for copies of packets only. */
uint64_t xskd_sys_wall_ns(void);
/* Ask the kernel to send what is on the TX ring. 0 or an errno; never blocks. */
int xskd_sys_wakeup_tx(int fd);
/* Ask the kernel to look at the FILL ring. 0 or an errno; never blocks. */
int xskd_sys_wakeup_rx(int fd);
/* ppoll() for at most timeout_ns. Number of ready descriptors (an interruption: none) or -errno. */
int xskd_sys_poll(struct pollfd *fds, uint32_t n, uint64_t timeout_ns);
/* What this process has used: CPU in ns (user, system), context switches (voluntary, involuntary), page faults
 * (major, minor). */
void xskd_sys_usage(uint64_t used[6]);

#endif
