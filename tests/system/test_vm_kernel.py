"""The VM itself: another kernel than the host's, with this checkout in it, forwarding a packet there.

One boot, of the kernel that zero-copy is tried on as well, so that there is one download. What the kernel
tests say under each kernel is scripts/test-vm's to find out; docs/compatibility.md has its results.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest

from lab.vm import FetchError, Vm
from lab.vm.fetch import EMULATOR, fetched

ROOT = Path(__file__).parents[2]
TEST = "tests/kernel/test_old_kernels.py::test_the_program_is_verified_and_a_forwarder_forwards[native]"
# What a machine must have to be worth a test: its own kernel, all rights, the host's files but not to write.
COMMAND = f"""
uname -r >/run/vm/kernel
grep CapEff /proc/self/status >/run/vm/rights
echo here >{ROOT}/vm-was-here && cat {ROOT}/vm-was-here
echo outside >/run/vm/outside
XSKD_SLOWNESS=20 {sys.executable} -m pytest -q --timeout 560 '{TEST}' || exit 1
exit 7
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: QEMU in namespaces of its own"),
    pytest.mark.alone,
]


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    try:
        for what in (EMULATOR, "backports"):
            fetched(what)
    except FetchError as error:
        pytest.skip(f"runs with Debian packages for a VM, which cannot be had: {error}")


@pytest.mark.timeout(700)
def test_another_kernel_forwards_a_packet_with_this_checkout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    machine = Vm(kernel="backports", directory=tmp_path, seconds=600)
    status = machine.run(["bash", "-c", COMMAND], show=True)
    said = capfd.readouterr().out
    assert status == 7, said
    assert (tmp_path / "kernel").read_text().strip() != platform.release()
    assert (tmp_path / "rights").read_text().split()[1].lstrip("0").startswith("1ff")
    assert said.startswith("here\n")
    assert "1 passed" in said
    assert not (ROOT / "vm-was-here").exists()
    assert (tmp_path / "outside").read_text() == "outside\n"
    assert "Call Trace" not in (tmp_path / "warnings").read_text()
