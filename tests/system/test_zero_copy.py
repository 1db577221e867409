"""Real zero-copy: boots a VM whose NICs have it and runs tests/kernel/zerocopy there; each is a result here.

Those tests need NICs that a machine like this one has not, so they are not collected outside the VM. One boot
serves all of them: a bounded selection in every run, everything with --long (scripts/test-zc does only that).
What they measured comes out with their results.
"""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lab.vm import FetchError, Nics, Vm

ROOT = Path(__file__).parents[2]
INSIDE = "tests/kernel/zerocopy"
MEMORY = 5000  # MiB: so much that what lies at 1 GiB stays unused, where virtio_net has its NIC read (docs)
QUEUES = 2  # of every NIC: with more than CPUs virtio_net makes some for XDP, to which packets come as well
SECONDS = {False: 900.0, True: 5400.0}  # until the VM is given up, short and long

# Of each promise one test. What a daemon survives takes longest in emulation: those of --long are the others.
SELECTION = tuple(
    f"{test}[{which}]" if which else test
    for test, each in {
        "test_zc_forward.py::test_connect_is_byte_exact_on_every_queue": ("v0-v1", "i0-i1", "v0-i0"),
        "test_zc_forward.py::test_reflect_is_byte_exact_on_every_queue": ("v0", "i0"),
        "test_zc_bind.py::test_the_mode_is_read_back_on_every_queue": ("v0", "i0"),
        "test_zc_bind.py::test_several_frames_a_packet_are_refused_and_auto_copies": ("v0", "i0"),
        "test_zc_bind.py::test_virtio_without_its_feature_announces_zero_copy_and_refuses_it": ("",),
        "test_zc_packets.py::test_frames_of_2048_bytes_are_half_used_by_igb": ("v0", "i0"),
        "test_zc_packets.py::test_virtio_leaves_vlan_tags_in_their_packets": ("",),
        "test_zc_packets.py::test_busy_polling_sends": ("v0", "i0"),
        "test_zc_rings.py::test_starved_of_frames_a_queue_recovers_by_our_wakeup": ("v0", "i0"),
        "test_zc_rings.py::test_a_full_completion_ring_stops_sending_and_draining_goes_on": ("v0", "i0"),
        "test_zc_rings.py::test_sending_needs_its_wakeup_each_time": ("v0", "i0"),
        "test_zc_rings.py::test_invalid_descriptors_are_never_posted": ("v0", "i0"),
    }.items()
    for which in each
)

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: QEMU in namespaces of its own"),
    pytest.mark.alone,
    pytest.mark.timeout(SECONDS[True] + 100),  # the first of them boots the VM
]

Results = dict[str, tuple[str, str]]  # what became of each test, and what it said


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Run the tests in the VM; what became of each, by its name."""
    long = bool(request.config.getoption("--long"))
    directory = tmp_path_factory.mktemp("vm")
    chosen = [INSIDE] if long else [f"{INSIDE}/{name}" for name in SELECTION]
    environment = (
        *("XSKD_ZERO_COPY=1", "XSKD_SLOWNESS=4", "XSKD_FIGURES=/run/vm/figures"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
    )
    tests = (sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-p", "no:cacheprovider", *chosen)
    options = (
        *("--junitxml=/run/vm/results.xml", "-o", "junit_logging=all", "-o", "timeout=600"),
        *(("--long",) if long else ()),
    )
    machine = Vm(
        nics=Nics(queues=QUEUES), cpus=QUEUES, memory=MEMORY, seconds=SECONDS[long], directory=directory
    )
    try:
        machine.run(("env", *environment, *tests, *options))
    except FetchError as error:
        pytest.skip(f"runs with Debian packages for a VM, which cannot be had: {error}")
    _keep_figures(directory / "figures")
    return _results(directory)


def _keep_figures(measured: Path) -> None:
    """Add what was measured inside to what this run measures."""
    if (kept := os.environ.get("XSKD_FIGURES")) and measured.exists():
        with Path(kept).open("a", encoding="utf-8") as file:
            file.write(measured.read_text(encoding="utf-8"))


def _results(directory: Path) -> Results:
    report = directory / "results.xml"
    assert report.exists(), f"pytest did not end:\n{(directory / 'output').read_text()}"
    found: Results = {}
    for case in ET.parse(report).iter("testcase"):
        file = case.attrib["classname"].rpartition(".")[2] + ".py"
        said = "\n".join(part.text or "" for part in case)
        bad = [part.tag for part in case if part.tag in ("failure", "error", "skipped")]
        outcome = found.get(f"{file}::{case.attrib['name']}", ("passed", ""))
        found[f"{file}::{case.attrib['name']}"] = (bad[0] if bad else outcome[0], outcome[1] + said)
    return found


@pytest.mark.parametrize("name", SELECTION)
def test_zero_copy(name: str, results: Results) -> None:
    outcome, said = results.get(name, ("not run", ""))
    print(said)
    assert outcome == "passed"


def test_everything_else(results: Results, request: pytest.FixtureRequest) -> None:
    """What --long runs more; without it, that nothing else ran."""
    others = {name: each for name, each in results.items() if name not in SELECTION}
    for name, (outcome, said) in others.items():
        print(f"{name}: {outcome}\n{said}")
    assert [name for name, (outcome, _) in others.items() if outcome != "passed"] == []
    assert bool(others) == bool(request.config.getoption("--long"))
