"""The daemon as others meet it: the supervisor with its metrics endpoint and its control socket around it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from functools import partial
from pathlib import Path
from typing import Any

from xskd import config, inheritance, logs, machine
from xskd.control import ControlServer
from xskd.daemon import Supervisor
from xskd.endpoint import Endpoint
from xskd.errors import ConfigError, XskdError, kernel_said, refusal
from xskd.machine import Outlook
from xskd.plan import Plan
from xskd.store import Store

LEAST_DESCRIPTORS = 64  # one path of two interfaces with one queue takes about 50

log = logging.getLogger("xskd")


def run(file: Path) -> None:
    """Run what the file says until a signal ends it. Raises XskdError if it cannot start or go on."""
    try:
        _take_descriptors()
        _run(file)
    except (OSError, MemoryError, RuntimeError) as error:  # the last two also of threads that cannot be had
        refused = refusal(error)
        if refused is None:
            raise
        raise refused from error


def _run(file: Path) -> None:
    store = Store()
    outlook, refused = _outlook(file, store)  # before there is an event loop: pyroute2 makes one of its own
    logs.set_up(outlook.plan.log_level)
    for line in refused.splitlines():
        log.error("%s", line)
    asyncio.run(_serve(outlook, refused, file, store))


def _take_descriptors() -> None:
    """As many as we may have. XskdError if those are too few to say of anything what it lacks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # workers inherit it, and open nothing
        with contextlib.suppress(OSError, ValueError):  # where that is forbidden, fewer have to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < LEAST_DESCRIPTORS:
        raise XskdError(
            f"no more than {hard} files may be open (RLIMIT_NOFILE), and the least that a daemon takes is "
            f"{LEAST_DESCRIPTORS}; see LimitNOFILE= of its unit, or `ulimit -n`"
        )


def _one_line(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the loop could not do is told; of what the kernel refused (descriptors, memory) in one line."""
    error = context.get("exception")
    if isinstance(error, OSError):
        log.error("%s: %s", context["message"], kernel_said(error))
    else:
        loop.default_exception_handler(context)


async def _serve(outlook: Outlook, refused: str, file: Path, store: Store) -> None:
    asyncio.get_running_loop().set_exception_handler(_one_line)
    surroundings = Surroundings()
    supervisor = Supervisor(outlook, file, store, surroundings.settle)
    supervisor.config_error = refused or None
    async with contextlib.AsyncExitStack() as stack:
        captures = supervisor.crew.captures
        stack.callback(captures.end_all)
        control = ControlServer(
            outlook.plan.control_socket,
            supervisor.status,
            supervisor.reload,
            captures,
            group=outlook.plan.control_group,
            refusals=supervisor.refusals,
        )
        try:
            await control.start()
            stack.push_async_callback(control.close)
            surroundings.open(outlook.plan, supervisor)
            stack.callback(surroundings.close)
        except XskdError as error:
            if not store.inherited:
                raise
            log.error("%s", error)  # no reason to end workers that forward
        await supervisor.run()


def _outlook(file: Path, store: Store) -> tuple[Outlook, str]:
    """What to run, and what is wrong with the file if that is not it.

    A file that cannot be used ends a first start. Where workers of a predecessor forward, it must not end
    them: they go on with the configuration they have (docs/decisions/0008-last-good-configuration.md).
    """
    try:
        return machine.look(config.load(file)), ""
    except ConfigError as error:
        if (last := inheritance.last_config(store)) is None:
            raise
        name, text = last
        return machine.look(config.parse(text, name)), str(error)


class Surroundings:
    """What is around the supervisor and follows the plan: metrics endpoint and log level."""

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._listen: tuple[str, int] | None = None
        self._level = ""
        self._supervisor: Supervisor | None = None

    def open(self, plan: Plan, supervisor: Supervisor) -> None:
        """Begin with this plan. Raises XskdError."""
        self._supervisor, self._level = supervisor, plan.log_level
        self._listen_on(plan.metrics_listen)

    def settle(self, plan: Plan) -> list[str]:
        """Follow another plan; returns what went wrong."""
        if plan.log_level != self._level:
            logs.set_up(plan.log_level)
            self._level = plan.log_level
        if plan.metrics_listen == self._listen:
            return []
        try:
            self._listen_on(plan.metrics_listen)
        except XskdError as error:
            return [str(error)]
        return []

    def close(self) -> None:
        """Stop serving."""
        if self._endpoint is not None:
            self._endpoint.close()

    def _listen_on(self, address: tuple[str, int] | None) -> None:
        """Listen there instead: first the new, then no more the old."""
        assert self._supervisor is not None
        new = None
        if address is not None:
            try:
                new = Endpoint(
                    address,
                    asyncio.get_running_loop(),
                    partial(self._supervisor.status, new_marks=True),
                    self._supervisor.refusals,
                )
            except OSError as error:
                host, port = address
                raise XskdError(
                    f"metrics on {host}:{port}: {error.strerror}; see key metrics.listen"
                ) from error
        self.close()
        self._endpoint, self._listen = new, address
