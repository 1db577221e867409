"""The daemon as others meet it: the supervisor with its metrics endpoint and its control socket around it."""

from __future__ import annotations

import asyncio
import contextlib

from xskd.control import ControlServer
from xskd.daemon import Supervisor
from xskd.errors import XskdError
from xskd.metrics import Endpoint
from xskd.plan import Plan


async def serve(plan: Plan) -> None:
    """Run the plan until a signal ends it. Raises XskdError if it cannot be started."""
    supervisor = Supervisor(plan)
    async with contextlib.AsyncExitStack() as stack:
        control = ControlServer(plan.control_socket, supervisor.status)
        await control.start()
        stack.push_async_callback(control.close)
        if plan.metrics_listen is not None:
            stack.callback(_listen(plan.metrics_listen, supervisor).close)
        await supervisor.run()


def _listen(address: tuple[str, int], supervisor: Supervisor) -> Endpoint:
    try:
        return Endpoint(address, asyncio.get_running_loop(), supervisor.status)
    except OSError as error:
        host, port = address
        raise XskdError(f"metrics on {host}:{port}: {error.strerror}; see key metrics.listen") from error
