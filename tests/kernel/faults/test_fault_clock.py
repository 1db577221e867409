"""The clock is stepped: no deadline, no heartbeat and no pause of xskd depends on the time of day.

The machine's clock is nobody's to set here. Supervisor and workers are started with a library in front of
libc's, which adds to the time of day what is in a file; it is the same for them.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from accounts import config, recovers, undisturbed
from daemon import SMALL, Daemon, running, total
from test_daemon_reload import forwards

from lab.figures import figure

if TYPE_CHECKING:
    from conftest import MakeWire

Times = Callable[[int, int], int]
DAY = 86_400  # seconds

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static const volatile long long *step;

static __attribute__((constructor)) void begin(void)
{
	int fd = open(getenv("STEP_FILE"), O_RDONLY);
	void *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

	if (page == MAP_FAILED)
		abort();
	step = page;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	int result;

	if (!real)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	result = real(clock, now);
	if (result == 0 && step && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += *step;
	return result;
}

int gettimeofday(struct timeval *now, void *zone)
{
	struct timespec precise;

	(void)zone;
	if (clock_gettime(CLOCK_REALTIME, &precise))
		return -1;
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *where)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (where)
		*where = now.tv_sec;
	return now.tv_sec;
}
"""


class Clock:
    """A time of day of their own for processes that are started by `prefix`."""

    def __init__(self, directory: Path) -> None:
        library, self._file = directory / "clock.so", directory / "step"
        command = ("gcc", "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(library), "-ldl")
        subprocess.run(command, input=CLOCK, text=True, check=True)
        self._file.write_bytes(bytes(4096))
        self.prefix = ("env", f"LD_PRELOAD={library}", f"STEP_FILE={self._file}")

    def step(self, seconds: int) -> None:
        """Set it to so many seconds from the right time."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", seconds))


def test_a_clock_that_is_stepped_changes_nothing(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    net, clock, sizes = wire(links=4), Clock(tmp_path), random.Random(9)
    with running(net, tmp_path, config(f"rings: {SMALL}"), prefix=clock.prefix) as daemon:
        with undisturbed(daemon):
            for number in range(times(6, 200)):
                clock.step((-1) ** number * sizes.randint(1, 400 * DAY))
                time.sleep(0.5)  # a tick of the supervisor, some beats of the workers
            last = clock_seen(daemon)
            assert abs(last - time.time()) > DAY / 24, "the step has not reached the daemon"
        killed = daemon.workers()["b/0"]
        os.kill(killed, signal.SIGKILL)
        clock.step(-400 * DAY)
        took = daemon.comes("b/0", other_than=killed)
        figure("time until a worker is replaced while the clock is stepped", took, "s", 10)
        net.link(net.dut, "eth4", "down")
        clock.step(400 * DAY)
        assert net.eventually(lambda: "eth4 is down" in daemon.status()["text"])
        clock.step(0)
        net.link(net.dut, "eth4", "up")
        recovers(daemon, "the clock was stepped and a link went up")
        assert forwards(net)
        metrics = daemon.metrics()
        assert total(metrics, "xskd_worker_restarts") == 1
        assert 0 <= total(metrics, "xskd_worker_gap_seconds", path="b") < took + 5
        assert "Traceback" not in daemon.log


def clock_seen(daemon: Daemon) -> float:
    """Tell the time of day as the daemon has it."""
    daemon.reload()
    return float(daemon.status()["reloads"]["last"])
