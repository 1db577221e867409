"""From one supervisor to the next: what runs is taken over, and what does not fit is let go of.

The successor may have another configuration, be of another version, or come after a crash. So everything
handed down is checked against what is wanted now, piece by piece: an interface's program, a worker with its
sockets. A piece that fits goes on without a packet lost; one that does not is closed everywhere, with one
line that says why, and made anew by the ordinary way. Nothing in here may fail a start: the worst that a bad
inheritance can do is to be discarded. docs/decisions/0007-hitless-restart.md tells the whole story.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xskd.config import Config
from xskd.crew import Crew, stored_process, stored_sockets
from xskd.difference import same_hook, same_sockets
from xskd.errors import XskdError
from xskd.logs import about
from xskd.plan import InterfacePlan, Plan, WorkerPlan
from xskd.programs import Programs
from xskd.slot import Slot
from xskd.spawn import Peer
from xskd.store import Store

FORMAT = 1  # of the state file; another one is discarded

log = logging.getLogger("xskd")


def save(store: Store, config: Config, programs: Programs, crew: Crew, before: str) -> str:
    """Write down what a successor must know, if it is not `before`. Returns it. Raises OSError."""
    state = {
        "format": FORMAT,
        "config": {"file": config.file, "text": config.text},
        "interfaces": programs.record(),
        "rule_tallies": programs.record_tallies(),
        "workers": crew.record(),
    }
    text = json.dumps(state)
    if text != before:
        store.save(text)
    return text


def last_config(store: Store) -> tuple[str, str] | None:
    """File name and text of the configuration that the predecessor ran; None if there is nothing to go on."""
    try:
        saved = store.load()["config"]
        return (str(saved["file"]), str(saved["text"])) if store.inherited else None
    except (KeyError, TypeError):
        return None


def take(store: Store, wanted: Plan, programs: Programs, crew: Crew) -> Plan:
    """Take over what fits a plan. Returns the part of the plan that runs now."""
    interfaces: list[InterfacePlan] = []
    workers: list[WorkerPlan] = []
    if store.inherited:
        try:
            state = store.load()
            if state.get("format") != FORMAT:
                raise ValueError(f"state file of format {state.get('format')}; this xskd reads {FORMAT}")
            interfaces.extend(_interfaces(state, wanted, programs))  # what was taken before an error stays
            workers.extend(_workers(state, wanted, store, crew))
        except (KeyError, TypeError, ValueError) as error:
            log.warning("the last supervisor's state cannot be read, all is started anew: %r", error)
    else:
        _end_strays(store)
    for name in store.untaken:
        programs.let_go(name)
    return replace(wanted, interfaces=tuple(interfaces), workers=tuple(workers), waiting=())


def _interfaces(state: Mapping[str, Any], wanted: Plan, programs: Programs) -> Iterator[InterfacePlan]:
    before = Programs.recorded(state["interfaces"])
    programs.take_over(state)
    for plan in wanted.interfaces:
        if plan.name not in before:
            continue
        try:
            if not same_hook(before[plan.name], plan):
                raise XskdError("the interface is another one now, or is to be attached otherwise")
            programs.adopt(plan)
            yield plan
        except XskdError as error:
            log.warning(
                "%s: the stored XDP program is let go of: %s", plan.name, error,
                extra=about(interface=plan.name),
            )  # fmt: skip


def _workers(state: Mapping[str, Any], wanted: Plan, store: Store, crew: Crew) -> Iterator[WorkerPlan]:
    planned = {plan.name: plan for plan in wanted.workers}
    for record in state["workers"]:
        before = WorkerPlan.from_json(record["plan"])
        predecessor = _predecessor(store, before)
        try:
            slot = _slot(store, record, before, planned.get(before.name))
        except (XskdError, KeyError, TypeError, ValueError) as error:
            why = error if isinstance(error, XskdError) else f"their record makes no sense: {error!r}"
            log.warning(
                "%s: the stored sockets are let go of: %s", before.name, why, extra=about(worker=before.name)
            )
            if predecessor is not None:
                predecessor.let_go()  # it ends when its channel does
            store.drop(stored_process(before.name))
            store.drop(stored_sockets(before.name))
            continue
        crew.take_over(slot, predecessor)
        yield slot.plan


def _slot(store: Store, record: Mapping[str, Any], before: WorkerPlan, plan: WorkerPlan | None) -> Slot:
    """The place of a worker as it was left. XskdError, with the reason, if it cannot be gone on with."""
    if plan is None:
        raise XskdError("nothing like it is configured or can run now")
    if not same_sockets(before, plan):
        raise XskdError("its interfaces, queues, rings, frames or mode are others now")
    if not all(record["modes"]):
        raise XskdError("they were not bound")
    descriptors = store.take(stored_sockets(before.name))
    if descriptors is None:
        raise XskdError("they are not there")
    return Slot.inherit(plan, record, descriptors)


def _predecessor(store: Store, plan: WorkerPlan) -> Peer | None:
    """The worker process that still forwards, if there is one.

    It stays in the store until its successor is there: it must not end with us, should we die before.
    """
    ways = store.take(stored_process(plan.name))
    return Peer(socket.socket(fileno=ways["channel"]), ways["pid"], plan) if ways else None


def _end_strays(store: Store) -> None:
    """Nothing was handed down, so no other worker of this service may be left: it would hold our queues.

    A worker that was stopped (SIGSTOP) when its channel was closed is one.
    """
    if not store.active:
        return
    with contextlib.suppress(OSError):
        own = Path("/proc/self/cgroup").read_text("ascii").partition("0::")[2].strip()
        for pid in map(int, Path(f"/sys/fs/cgroup{own}/cgroup.procs").read_text("ascii").split()):
            with contextlib.suppress(OSError):
                if pid != os.getpid() and b"xskd.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    log.warning("worker process %d of an earlier run is still there, killed", pid)
