"""Work aside from the supervisor's loop, in a thread, for calls that may take their time.

A machine that has no thread to give is a reason for the work to fail, and to be tried again like any other;
it must never be one for the loop to end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from xskd.errors import XskdError, refusal

T = TypeVar("T")


def aside(do: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """Do it in a thread; a future of what it returns or raises, XskdError if there is no thread to be had."""
    loop = asyncio.get_running_loop()
    try:
        return loop.run_in_executor(None, do, *arguments)
    except RuntimeError as error:
        failed: asyncio.Future[T] = loop.create_future()
        failed.set_exception(refusal(error) or XskdError(str(error)))
        return failed
