"""What all tests share: --no-unexpected-skips, which makes a skip that nobody foresaw fail the run.

A skip says what is missing. On a machine that scripts/setup has prepared, only what no package can bring may
be missing; those reasons are listed here, each with why it cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

EXPECTED_SKIPS = (
    "no huge pages are reserved",  # a sysctl of the whole machine, which tests must not change
    "with npm packages",  # of a registry that may be out of reach; scripts/setup says so
    "needs the npm packages",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-unexpected-skips", action="store_true", help="fail if a test is skipped for an unknown reason"
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not session.config.getoption("--no-unexpected-skips") or exitstatus != pytest.ExitCode.OK:
        return
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    skipped: Sequence[pytest.TestReport] = reporter.stats.get("skipped", ())
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(known in reason for known in EXPECTED_SKIPS):
            reporter.write_line(f"unexpected skip: {report.nodeid}: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
