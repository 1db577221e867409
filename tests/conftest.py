"""What all tests share: how often to try, which skips are expected, and that unit tests leave nothing open.

Tests that try something again and again ask `times` how often: a bounded number in every run, so that all of
them end in time, the whole of it with --long (scripts/faults). --no-unexpected-skips makes a skip that nobody
foresaw fail the run.

A skip says what is missing. On a machine that scripts/setup has prepared, only what no package can bring may
be missing; those reasons are listed here, each with why it cannot be had.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

EXPECTED_SKIPS = (
    "no huge pages are reserved",  # a sysctl of the whole machine, which tests must not change
    "with npm packages",  # of a registry that may be out of reach; scripts/setup says so
    "needs the npm packages",
    "with Debian packages for a VM",  # QEMU and a kernel, of an archive that may be out of reach
)


LONG_SECONDS = 7200  # what a test may take with --long
UNIT = Path(__file__).with_name("unit")
CLOSING_SECONDS = 5.0  # for what is being closed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="try everything as often as docs/reliability.md says"
    )
    parser.addoption(
        "--no-unexpected-skips", action="store_true", help="fail if a test is skipped for an unknown reason"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--long") and config.getoption("timeout") is None:
        config.option.timeout = LONG_SECONDS


@pytest.fixture(scope="session")
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Say how often to try: the first number in every run, the second with --long."""
    long = request.config.getoption("--long")
    return lambda short, whole: whole if long else short


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail where a file of unit tests leaves descriptors open, unless a test of it has failed itself.

    Others come after it on the same process, and select() takes no descriptor above 1023. What only waits for
    the collector of garbage, or for a thread that is about to end, is not left.
    """
    before, failed = open_descriptors(), request.session.testsfailed
    yield
    if not request.path.is_relative_to(UNIT) or request.session.testsfailed > failed:
        return
    deadline = time.monotonic() + CLOSING_SECONDS
    while (left := open_descriptors() - before) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.1)
    assert not left, f"{len(left)} descriptors left open: {sorted(what for _, what in left)}"


def open_descriptors() -> set[tuple[str, str]]:
    """Number of each descriptor of this process, and what it is of."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the list itself
            found.add((each.name, str(each.readlink())))
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not session.config.getoption("--no-unexpected-skips") or exitstatus != pytest.ExitCode.OK:
        return
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if reporter is None:  # one process of several, which reports to the one that has it
        return
    skipped: Sequence[pytest.TestReport] = reporter.stats.get("skipped", ())
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(known in reason for known in EXPECTED_SKIPS):
            reporter.write_line(f"unexpected skip: {report.nodeid}: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
