"""How many instructions the loop needs for a packet: counted by callgrind, so the same on every run.

The fake kernel's work is left out: counting starts in a turn of the loop and pauses in its system calls.
`python tests/native/test_instructions.py` prints the figures; instructions.json has those of the last change.
"""

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from compiling import HERE, compiled

RECORDED = json.loads((HERE / "instructions.json").read_text(encoding="utf-8"))
PACKETS = 64_000  # that bench_turn sends
COUNTED = "xskd_forward_turn"
LEFT_OUT = ("xskd_sys_wakeup_tx", "xskd_sys_wakeup_rx")  # a toggle inside a toggle: off
ACTIONS = ("connect", "reflect", "route", "scatter")
GROWTH = 1.05
OBSERVING = 1.10  # all that csrc/observe.h does may cost so much; docs/decisions/0012-observing.md


def instructions_per_packet(action: str, callgrind_out: Path | str = "/dev/null") -> float:
    """For an action of bench_turn.c, in bursts of 64 packets of 60 bytes."""
    toggles = [f"--toggle-collect={name}" for name in (COUNTED, *LEFT_OUT)]
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={callgrind_out}", *toggles]
    command = [*valgrind, str(compiled("bench_turn", "plain")), action]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    assert done.returncode == 0 and collected, done.stderr
    assert int(done.stdout) == PACKETS
    return int(collected[1]) / PACKETS


@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is missing: apt-get install valgrind")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the figures are of x86-64")
@pytest.mark.parametrize("action", ACTIONS)
def test_instructions_per_packet(action: str) -> None:
    figure, recorded = instructions_per_packet(action), RECORDED[action]
    print(f"{action}: {figure:.2f} instructions a packet (recorded {recorded['instructions']})")
    assert figure <= recorded["instructions"] * GROWTH, "grown by more than 5 %"
    assert figure <= recorded["without_observing"] * OBSERVING, "what is watched costs too much"


if __name__ == "__main__":
    for name in ACTIONS:
        print(f"{name}: {instructions_per_packet(name):.2f} instructions a packet")
