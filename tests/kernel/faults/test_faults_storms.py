"""Reloads in a row of whatever there may be in a file, and restarts that do not wait for one another.

The promises, of docs/operations.md and decisions 7 and 8:

* A wrong file changes nothing, and says each of its mistakes once.
* A right one is applied: what runs is then what it says. A queue that it does not concern keeps its process
  and loses nothing, however many there are.
* A supervisor that is ended again before it has taken over, at any moment, costs no packet but those for
  which the rings had no room meanwhile.
* After all of it nothing has leaked, and no counter of what was always there has gone back.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from configurations import Config, plain, right, text_of, wrong
from daemon import METRICS, Daemon, Lane, Stream, connect, running
from ledger import Ledger
from manager import managed

from lab.figures import figure
from xskd import control

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

RATE = 500  # packets/s
SEED = 1000
DEEP = "rings: {fill: 4096, rx: 4096, tx: 512, completion: 1024}"  # 8 s of that


class Storm:
    """A daemon whose file is replaced again and again; path a is never concerned."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.rest: Config = {"control": {"socket": str(daemon.socket)}, "metrics": {"listen": METRICS}}
        self.took: list[float] = []  # seconds that right ones took

    def replace_file(self, text: str) -> None:
        """As an editor or a configuration management does it: there is a whole file at any time."""
        draft = self.daemon.file.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self.daemon.file)

    def status(self) -> dict[str, Any]:
        """Ask again where a busy machine has let the daemon no time to answer."""
        answers: list[dict[str, Any]] = []

        def answered() -> bool:
            with suppress(control.NoAnswer):
                answers.append(self.daemon.status())
            return bool(answers)

        assert self.daemon.net.eventually(answered, 60)
        return answers[0]

    def workers(self) -> dict[str, int]:
        """Tell the process id of every worker that has one."""
        return {worker["name"]: worker["pid"] for worker in self.status()["workers"] if worker["pid"]}

    def reloads(self) -> int:
        """How many have been done or refused."""
        told = self.status()["reloads"]
        return int(told["success"] + told["failure"])

    def ask(self) -> str:
        """Reload by the control socket, as `xskd reload` does; what was wrong, or nothing."""
        try:
            control.ask(self.daemon.socket, "reload", dry=False)
        except control.Refused as refused:
            return str(refused)
        return ""

    def hang_up(self) -> None:
        """Reload by SIGHUP, and wait until it is over."""
        before = self.reloads()
        os.kill(self.daemon.pid, signal.SIGHUP)
        assert self.daemon.net.eventually(lambda: self.reloads() > before, 60)
        assert self.daemon.net.eventually(self.settled, 60), self.status()["workers"]

    def settled(self) -> bool:
        return all(worker["state"] == "forwarding" for worker in self.status()["workers"])

    def picture(self) -> Any:
        """What a wrong file must not change."""
        status = self.status()
        workers = [
            (w["name"], w["pid"], w["state"], w["poll"], w["cpu"], [port["rings"] for port in w["ports"]])
            for w in status["workers"]
        ]
        interfaces = [
            (i["name"], i["path"], i["fallback"], [(rule["name"], rule["verdict"]) for rule in i["rules"]])
            for i in status["interfaces"]
        ]
        return status["paths"], interfaces, workers

    def put_right(self, config: Config, *, by_signal: bool) -> None:
        """Load a right one: then the file asks for nothing any more, and untouched workers are the same."""
        before, began = self.workers(), time.monotonic()
        self.replace_file(text_of(config, self.rest))
        actions = control.ask(self.daemon.socket, "reload", dry=True)["actions"]
        if by_signal:
            self.hang_up()
        else:
            assert self.ask() == ""
        self.took.append(time.monotonic() - began)
        assert control.ask(self.daemon.socket, "reload", dry=True)["actions"] == []
        after = self.workers()
        made_anew = {
            action.split(":")[0] for action in actions if action.endswith((": stop", ": start", "sockets"))
        }
        for name in before.keys() - made_anew:
            assert after[name] == before[name], f"{name} has another process after {actions}"

    def put_wrong(self, text: str, *, by_signal: bool) -> None:
        """Load a wrong one: it is refused with one line, and nothing has changed."""
        before = self.picture()
        self.replace_file(text)
        if by_signal:
            self.hang_up()
        else:
            assert len(self.ask().splitlines()) == 1
        assert len(self.status()["config_error"].splitlines()) == 1, text
        assert self.picture() == before


def forwards(net: Wire, count: int = 100) -> bool:
    """Tell whether path b brings packets from one of its hosts to the other."""
    sent = net.frames(count)
    net.taps[3].waiting()
    return Lane(net, 0, 2).through(sent, net.taps[3]) == sent


def test_reload_storms_change_what_they_say_and_nothing_else(
    wire: MakeWire, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    net, chance, kinds = wire(links=4, queues=2), random.Random(SEED), Counter[str]()
    with running(net, tmp_path, text_of(plain(), {})) as daemon:
        storm = Storm(daemon)
        for config in (right(random.Random(1)), plain()):  # what the first changes add is no leak
            storm.put_right(config, by_signal=False)
        ledger, pids, began = Ledger(daemon), daemon.workers(), time.monotonic()
        with Stream(net, queue=0, rate=RATE) as one, Stream(net, queue=1, rate=RATE, hosts=(1, 0)) as other:
            for number in range(times(20, 1_000)):
                good, by_signal = chance.random() < 0.5, chance.random() < 0.3
                kinds[("right" if good else "wrong") + (" by SIGHUP" if by_signal else "")] += 1
                if good:
                    storm.put_right(right(chance), by_signal=by_signal)
                else:
                    storm.put_wrong(wrong(chance, storm.rest), by_signal=by_signal)
                if number % 10 == 0:
                    ledger.scrape("a")
                    ledger.note_memory()
                    print(f"{number}: {time.monotonic() - began:.1f} s", flush=True)
            storm.put_right(plain(), by_signal=False)
        seconds = time.monotonic() - began
        assert {name: pid for name, pid in daemon.workers().items() if name[0] == "a"} == {
            name: pid for name, pid in pids.items() if name[0] == "a"
        }
        assert forwards(net)
        ledger.scrape("a")
        ledger.audit(same=False)
        assert "Traceback" not in daemon.log
    print(
        f"{sum(kinds.values())} reloads of seed {SEED} in {seconds:.0f} s: {dict(kinds)}; a right one took "
        f"{statistics.median(storm.took):.2f} s (median); {one.sent + other.sent} packets on untouched queues"
    )
    figure("packets lost by untouched queues in a reload storm", one.lost + other.lost, "packets", 0)
    assert one.whole
    assert other.whole
    figure("a reload of a storm takes", max(storm.took), "s", 60)
    figure("growth of the supervisor's memory over a reload storm", ledger.growth, "kB", 16_000)


def test_reloads_that_do_not_wait_for_one_another_end_with_the_last_file(
    wire: MakeWire, tmp_path: Path
) -> None:
    net, chance = wire(links=4, queues=2), random.Random(SEED)
    with running(net, tmp_path, text_of(plain(), {})) as daemon, Stream(net, rate=RATE) as stream:
        storm, pids = Storm(daemon), daemon.workers()
        for _ in range(20):
            good = chance.random() < 0.7
            storm.replace_file(text_of(right(chance), storm.rest) if good else wrong(chance, storm.rest))
            os.kill(daemon.pid, signal.SIGHUP)
            time.sleep(chance.uniform(0, 0.05))
        storm.replace_file(text_of(plain(), storm.rest))
        assert storm.ask() == ""
        assert control.ask(daemon.socket, "reload", dry=True)["actions"] == []
        assert net.eventually(storm.settled, 60)
        assert forwards(net)
        assert {name: pid for name, pid in daemon.workers().items() if name[0] == "a"} == {
            name: pid for name, pid in pids.items() if name[0] == "a"
        }
        assert stream.goes_on()
    assert stream.whole


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "killed"])
def test_restarts_that_do_not_wait_for_one_another_lose_nothing(
    wire: MakeWire, tmp_path: Path, times: Callable[[int, int], int], sign: signal.Signals
) -> None:
    net, chance, restarts = wire(queues=2), random.Random(SEED), times(5, 100)
    with managed(net, tmp_path, connect(interface=DEEP, rest="umem: {frame_size: 2048}")) as daemon:
        starts = daemon.starts
        os.kill(daemon.pid, signal.SIGKILL)  # what a first restart adds is no leak
        assert net.eventually(lambda: daemon.starts > starts and daemon.well, 40)
        ledger, began = Ledger(daemon), time.monotonic()
        with Stream(net, rate=RATE) as one, Stream(net, queue=1, rate=RATE, hosts=(1, 0)) as other:
            for _ in range(restarts):
                time.sleep(
                    chance.uniform(0, 1.0)
                )  # a start takes about that long, so most do not get to its end
                starts = daemon.starts
                daemon.process.send_signal(sign)
                assert net.eventually(lambda: daemon.starts > starts, 10)  # noqa: B023
            assert net.eventually(lambda: daemon.well, 40), daemon.log
            assert one.goes_on()
            assert other.goes_on()
        ledger.audit()
        took, counted = time.monotonic() - began, ledger.counted()
    lost, sent = one.lost + other.lost, one.sent + other.sent
    waited = max(one.waited, other.waited)
    print(f"{restarts} restarts of seed {SEED} in {took:.0f} s: {lost} of {sent} packets lost, {counted}")
    what = "ended" if sign == signal.SIGTERM else "killed"
    figure(
        f"packets lost and not counted while supervisors are {what} in a row",
        abs(lost - sum(counted.values())),
        "packets",
        0,
    )
    figure(f"nothing arrived while supervisors are {what} in a row for", waited, "s", 10)
    assert one.doubled + other.doubled + one.damaged + other.damaged == 0
