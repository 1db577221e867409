/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "syscalls.h"

#include <errno.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#define NS_PER_S 1000000000ull

static uint64_t now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);      /* cannot fail with these clocks and a valid pointer */
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t xskd_sys_now_ns(void)
{
	return now_ns(CLOCK_MONOTONIC);
}

uint64_t xskd_sys_wall_ns(void)
{
	return now_ns(CLOCK_REALTIME);
}

/* Without MSG_DONTWAIT the kernel answers EOPNOTSUPP; all other arguments must be empty. */
int xskd_sys_wakeup_tx(int fd)
{
	return sendto(fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 ? errno : 0;
}

int xskd_sys_wakeup_rx(int fd)
{
	return recvfrom(fd, NULL, 0, MSG_DONTWAIT, NULL, NULL) < 0 ? errno : 0;
}

static uint64_t ns_of(const struct timeval *time)
{
	return (uint64_t)time->tv_sec * NS_PER_S + (uint64_t)time->tv_usec * 1000;
}

void xskd_sys_usage(uint64_t used[6])
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);         /* cannot fail either */
	used[0] = ns_of(&usage.ru_utime);
	used[1] = ns_of(&usage.ru_stime);
	used[2] = (uint64_t)usage.ru_nvcsw;
	used[3] = (uint64_t)usage.ru_nivcsw;
	used[4] = (uint64_t)usage.ru_majflt;
	used[5] = (uint64_t)usage.ru_minflt;
}

int xskd_sys_poll(struct pollfd *fds, uint32_t n, uint64_t timeout_ns)
{
	struct timespec ts = { (time_t)(timeout_ns / NS_PER_S), (long)(timeout_ns % NS_PER_S) };
	int ready = ppoll(fds, n, &ts, NULL);

	if (ready >= 0)
		return ready;
	return errno == EINTR ? 0 : -errno;
}
