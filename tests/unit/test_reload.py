"""What a running supervisor makes of another file, and of a machine that changes under it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from fakes import ADOPTED, BOUND, STOPPED, FakeProcess, FakeProgram, connect, device, failed, in_maps
from test_supervisor import ONE, TWO_PATHS, Scene, scene, told

from xskd import machine
from xskd.daemon import LinksChanged, Looked, Reload, Tick
from xskd.errors import ConfigError, XskdError

__all__ = ["scene"]
HERE = device("eth1"), device("eth2")
THREE = *HERE, device("eth3")
BAD = connect("{mode: fast}")


@pytest.fixture
def running(scene: Scene) -> Scene:
    """One path, one worker, ready."""
    return scene.start(connect(), *HERE).forward()


def drains(scene: Scene, name: str = "wire/0") -> None:
    """A worker that was told to stop does."""
    assert scene.process(name).told[-1] == "stop"
    scene.says(STOPPED, name)
    scene.ends(name, "exit 0")


# ---- a reload -------------------------------------------------------------------------------------


def test_a_file_that_has_not_changed_changes_nothing(running: Scene) -> None:
    process = running.process()
    assert running.reload().result() == []
    assert (running.process(), process.told, running.settled) == (process, ["go"], [])
    assert told(running)[-3:] == ["RELOADING=1", "READY=1", "STATUS=1 path, 1 queue forwarding, copy mode"]


def test_a_reload_answers_when_what_it_started_works(running: Scene) -> None:
    running.have(*THREE)
    asking = running.reload(TWO_PATHS)
    assert running.states() == {"wire/0": "forwarding", "echo/0": "starting"}
    assert not asking.done()
    running.says(ONE, "echo/0")
    assert asking.result() == ["eth3: attach the XDP program", "echo/0: start"]
    assert in_maps() == [{0}, {0}, {0}]
    assert FakeProcess.made[0].told == ["go"]  # the other was left alone


def test_a_reload_during_another_reads_the_file_when_that_one_is_over(
    running: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks at once could end in the wrong order, and an older file would be what runs."""
    loop, held = running.runner.get_loop(), list[Callable[[], None]]()

    def hold(_executor: None, look: Callable[[], Any]) -> asyncio.Future[Any]:
        future = loop.create_future()
        held.append(lambda: running.do(lambda: future.set_result(look())))
        return future

    monkeypatch.setattr(loop, "run_in_executor", hold)
    first, second = running.reload(connect(path=", poll: busy")), running.reload()
    assert len(held) == 1
    held[0]()
    assert len(held) == 2
    running.write(connect(path=", poll: wakeup"))
    held[1]()
    running.says({"event": "tuned"})
    assert [plan.poll for plan in running.process().plans] == ["busy", "wakeup"]
    assert (first.result(), second.result()) == (["wire/0: poll busy"], ["wire/0: poll wakeup"])


def test_a_reload_waits_for_workers_to_be_tuned(running: Scene) -> None:
    asking = running.reload(connect(path=", poll: busy"))
    assert (asking.done(), running.process().plans[0].poll) == (False, "busy")
    running.says({"event": "tuned"})
    assert asking.result() == ["wire/0: poll busy"]
    assert len(FakeProcess.made) == 1


def test_a_path_that_is_gone_from_the_file_is_forgotten(scene: Scene) -> None:
    scene.start(TWO_PATHS, *THREE).forward()
    asking = scene.reload(connect())
    assert "eth3" not in FakeProgram.on
    assert not asking.done()
    drains(scene, "echo/0")
    assert asking.result() == ["eth3: detach the XDP program", "echo/0: stop"]
    assert list(scene.states()) == ["wire/0"]


def test_new_sockets_are_made_when_the_old_worker_has_drained(running: Scene) -> None:
    asking = running.reload(connect("{rings: {rx: 64}}"))
    drains(running)
    assert running.states() == {"wire/0": "starting"}
    running.says(BOUND)
    assert asking.result() == ["wire/0: new sockets"]


def test_another_attach_mode_of_one_interface_keeps_the_worker_and_its_sockets(running: Scene) -> None:
    assert running.reload(connect("{attach: generic}")).result() == [
        "eth1: detach the XDP program",
        "eth1: attach the XDP program",
    ]
    assert in_maps() == [{0}, {0}]
    assert (FakeProgram.on["eth1"].attach_mode, len(FakeProcess.made)) == ("generic", 1)


def test_another_fallback_is_set_in_the_programs_that_are_there(running: Scene) -> None:
    before = dict(FakeProgram.on)
    assert running.reload(connect(path=", fallback: drop")).result() == [
        "eth1: fallback drop",
        "eth2: fallback drop",
    ]
    assert before == FakeProgram.on
    assert {program.fallback for program in before.values()} == {"drop"}


def test_settings_are_settled_and_what_goes_wrong_there_is_the_answer(running: Scene) -> None:
    running.settling.append("metrics on 127.0.0.1:1: Permission denied; see key metrics.listen")
    asking = running.reload(connect(rest="metrics: {listen: '127.0.0.1:1'}\nlog: {level: debug}"))
    assert [plan.log_level for plan in running.settled] == ["debug"]
    with pytest.raises(XskdError, match=r"metrics on 127\.0\.0\.1:1: Permission denied"):
        asking.result()
    assert running.states() == {"wire/0": "forwarding"}


def test_a_worker_that_cannot_start_is_the_answer(running: Scene) -> None:
    running.have(*THREE)
    asking = running.reload(TWO_PATHS)
    for _ in range(2):  # the first try is followed by another at once
        running.says(failed("bind(eth3 queue 0): EBUSY"), "echo/0")
        running.ends("echo/0", "exit 1")
    with pytest.raises(XskdError, match=r"^echo/0: bind\(eth3 queue 0\): EBUSY$"):
        asking.result()
    assert running.states() == {"wire/0": "forwarding", "echo/0": "backoff"}


def test_a_path_that_has_to_wait_is_the_answer_and_the_rest_is_done(running: Scene) -> None:
    asking = running.reload(TWO_PATHS.replace("eth2]", "eth2], poll: busy"))
    running.says({"event": "tuned"})
    with pytest.raises(XskdError, match=r"interfaces\.eth3: no such interface"):
        asking.result()
    assert running.process().plan.poll == "busy"
    assert list(running.supervisor.status().waiting) == ["echo"]


def test_a_signal_reloads_too_and_the_log_has_the_answer(
    running: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    running.write(connect(path=", fallback: drop"))
    with caplog.at_level(logging.INFO, "xskd"):
        running.act(Reload())
    assert "reload: eth1: fallback drop" in caplog.messages
    assert FakeProgram.on["eth1"].fallback == "drop"


def test_two_reloads_at_once_are_both_answered(running: Scene) -> None:
    first, second = running.reload(connect(path=", poll: busy")), running.reload()
    running.says({"event": "tuned"})
    assert (first.result(), second.result()) == (["wire/0: poll busy"], [])


def test_a_reload_before_the_daemon_is_ready_does_not_make_it_so(scene: Scene) -> None:
    scene.start(connect(), *HERE)
    scene.change(device("eth1", carrier=False), device("eth2"))
    scene.forward()
    assert scene.reload().result() == []
    assert "READY=1" not in told(scene)
    scene.change(*HERE)
    assert told(scene).count("READY=1") == 1


# ---- a bad file -----------------------------------------------------------------------------------


def test_a_bad_file_changes_nothing_and_is_remembered_until_a_good_one(running: Scene) -> None:
    process = running.process()
    asking = running.reload(BAD)
    with pytest.raises(ConfigError, match=r"interfaces\.eth1\.mode: must be"):
        asking.result()
    assert (running.process(), process.told) == (process, ["go"])
    assert "RELOADING=1" not in told(running)
    status = running.supervisor.status()
    assert "interfaces.eth1.mode" in str(status.config_error)
    assert told(running)[-1].endswith("; the configuration file is wrong, an older one runs")
    assert running.reload(connect()).result() == []
    assert running.supervisor.status().config_error is None
    assert told(running)[-1] == "STATUS=1 path, 1 queue forwarding, copy mode"


def test_a_file_that_asks_for_foreign_cpus_is_bad_too(running: Scene) -> None:
    with pytest.raises(ConfigError, match="may not use CPU 9"):
        running.reload(connect(path=", cpus: 9")).result()
    assert running.supervisor.status().config_error


def test_every_line_of_what_is_wrong_is_logged(running: Scene, caplog: pytest.LogCaptureFixture) -> None:
    running.write(connect("{mode: fast}", "{mode: slow}"))
    running.act(Reload())
    assert [message.split(": ")[0] for message in caplog.messages] == ["reload", "reload"]
    assert not running.task.done()


def test_reloads_are_counted_and_dry_ones_are_not(running: Scene) -> None:
    def counted() -> tuple[int, int, int, bool]:
        told = running.supervisor.status().reloads
        return told.generation, told.success, told.failure, told.last_successful

    status = running.supervisor.status()
    assert (counted(), status.reloads.last) == ((1, 0, 0, True), status.started)
    running.reload(BAD)
    assert counted() == (1, 0, 1, False)
    running.reload(BAD, dry=True)
    running.reload(connect(), dry=True)
    assert counted() == (1, 0, 1, False)
    before = running.supervisor.status().reloads.last
    assert before > status.started
    running.act(Reload())  # as by a signal; that nothing has changed is a success too
    assert counted() == (2, 1, 1, True)
    assert running.supervisor.status().reloads.last > before
    running.reload(TWO_PATHS)  # eth3 is not there: loaded all the same
    assert counted() == (3, 2, 1, True)


# ---- a dry run ------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_does_nothing(running: Scene) -> None:
    running.have(*THREE)
    before = told(running)
    assert running.reload(TWO_PATHS, dry=True).result() == ["eth3: attach the XDP program", "echo/0: start"]
    assert (list(running.states()), told(running)) == (["wire/0"], before)
    assert "eth3" not in FakeProgram.on


def test_a_dry_run_of_a_bad_file_says_so_and_is_forgotten(running: Scene) -> None:
    with pytest.raises(ConfigError):
        running.reload(BAD, dry=True).result()
    assert running.supervisor.status().config_error is None


# ---- links that change ----------------------------------------------------------------------------


def test_a_path_whose_interface_goes_away_waits_and_starts_again_by_itself(scene: Scene) -> None:
    scene.start(TWO_PATHS, *THREE).forward()
    place, neighbour = scene.supervisor.crew.slots["wire/0"], scene.process("echo/0")
    scene.change(device("eth2"), device("eth3"))
    drains(scene)
    assert scene.states() == {"wire/0": "waiting", "echo/0": "forwarding"}
    assert place.last_error is not None
    assert place.last_error.startswith("no such interface")
    assert told(scene)[-1] == "STATUS=1 path, 1 queue forwarding, copy mode; waiting: wire"
    assert sorted(FakeProgram.on) == ["eth2", "eth3"]  # whose fallback holds
    scene.change(device("eth1", ifindex=99), device("eth2"), device("eth3"))
    scene.forward("wire/0")
    assert scene.supervisor.crew.slots["wire/0"] is place
    assert place.plan.ports[0].ifindex == 99
    assert in_maps() == [{0}, {0}, {0}]
    assert scene.process("echo/0") is neighbour
    assert told(scene)[-1] == "STATUS=2 paths, 2 queues forwarding, copy mode"


def test_each_reason_to_wait_is_logged_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.start(TWO_PATHS, *THREE).forward()
    scene.change(device("eth1"), device("eth2", mtu=9000), device("eth3"))
    scene.act(LinksChanged(), LinksChanged(), Tick())
    waits = [message for message in caplog.messages if message.startswith("path wire waits: ")]
    assert len(waits) == 1
    assert "MTU 9000 does not fit" in waits[0]


def test_an_interface_made_anew_gets_a_new_program_and_its_worker_new_sockets(running: Scene) -> None:
    before = FakeProgram.on["eth1"]
    running.change(device("eth1", ifindex=99), device("eth2"))
    drains(running)
    running.forward()
    assert FakeProgram.on["eth1"] is not before
    assert before.closed
    assert in_maps() == [{0}, {0}]
    assert FakeProcess.made[-1].adopt is False


def test_an_interface_made_anew_that_takes_no_program_leaves_its_path_waiting(running: Scene) -> None:
    FakeProgram.refuse["eth1"] = "somebody else was faster"
    running.change(device("eth1", ifindex=99), device("eth2"))
    drains(running)
    assert running.states() == {"wire/0": "waiting"}
    assert "somebody else was faster" in str(running.supervisor.status().waiting["wire"])
    FakeProgram.refuse.clear()
    running.act(LinksChanged())
    running.forward()
    assert (running.states(), in_maps()) == ({"wire/0": "forwarding"}, [{0}, {0}])
    assert len(FakeProcess.made) == 2


def test_a_program_that_is_refused_at_a_start_leaves_its_path_waiting(scene: Scene) -> None:
    FakeProgram.refuse["eth2"] = "somebody else was faster"
    scene.start(TWO_PATHS, *THREE)
    assert scene.states() == {"echo/0": "starting"}
    scene.forward("echo/0")
    assert scene.supervisor.ready
    assert list(scene.supervisor.status().waiting) == ["wire"]


def test_a_queue_that_goes_away_has_its_worker_wait_and_one_that_comes_back_start(scene: Scene) -> None:
    def with_queues(number: int) -> None:
        scene.change(*(device(f"eth{i}", queues=number, max_queues=2) for i in (1, 2)))

    scene.start(connect(), *(device(f"eth{i}", queues=2) for i in (1, 2))).forward()
    place = scene.supervisor.crew.slots["wire/1"]
    with_queues(1)
    drains(scene, "wire/1")
    assert (place.state, place.last_error) == ("waiting", "its queue is not there any more")
    assert in_maps() == [{0}, {0}]
    with_queues(2)
    assert scene.supervisor.crew.slots["wire/1"] is place
    scene.forward("wire/1")
    assert in_maps() == [{0, 1}, {0, 1}]


def test_another_mtu_that_fits_is_told_to_the_worker(running: Scene) -> None:
    running.change(device("eth1", mtu=1400), device("eth2"))
    assert [port.mtu for port in running.process().plans[0].ports] == [1400, 1500]


def test_a_link_that_comes_up_ends_a_pause(running: Scene) -> None:
    running.change(device("eth1", up=False, carrier=False), device("eth2"))
    for _ in range(2):
        running.says(failed("sendto(eth1): ENETDOWN"))
        running.ends("wire/0", "exit 1")
        if running.process() is not None:
            running.says(BOUND)
    assert running.states() == {"wire/0": "backoff"}
    running.act(LinksChanged())
    assert running.states() == {"wire/0": "backoff"}  # nothing has changed
    running.change(*HERE)
    assert running.states() == {"wire/0": "starting"}


def test_a_kernel_that_does_not_answer_changes_nothing(
    running: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise OSError(105, "No buffer space available")

    monkeypatch.setattr(machine, "look", broken)
    running.act(LinksChanged())
    assert "asking the kernel about interfaces: [Errno 105] No buffer space available" in caplog.text
    assert running.states() == {"wire/0": "forwarding"}
    assert not running.task.done()


def test_a_look_that_was_begun_before_a_reload_is_of_no_more_use(running: Scene) -> None:
    """It has seen another configuration."""
    old = running.look(running.supervisor.config)
    assert running.reload(connect(path=", fallback: drop")).done()
    running.act(Looked(old, None))
    assert FakeProgram.on["eth1"].fallback == "drop"


def test_a_worker_adopts_again_after_its_path_has_waited(running: Scene) -> None:
    running.change(device("eth1"))
    drains(running)
    running.change(*HERE)
    running.forward()
    running.ends()
    assert running.process().adopt
    running.says(ADOPTED)
    assert in_maps() == [{0}, {0}]


def test_a_path_that_flaps_while_its_worker_drains_has_one_worker_in_the_end(running: Scene) -> None:
    running.change(device("eth1"))
    running.change(*HERE)
    assert len(FakeProcess.made) == 1
    drains(running)
    assert running.states() == {"wire/0": "starting"}
    running.forward()
    assert (len(FakeProcess.made), in_maps()) == (2, [{0}, {0}])
