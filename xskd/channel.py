"""What the supervisor and a worker say to each other: JSON over a socket pair, sometimes with descriptors.

    supervisor -> worker    hello (plan, descriptors: UMEM, counter page, one XSK per port; adopt or not),
                            go, follow, tune (plan), yield, stop,
                            capture (direction, snaplen, filter; descriptor: the ring), uncapture
    worker -> supervisor    prepared, bound, tuned, yielded, failed, stopped, capturing (error, if it cannot)

A worker may be older than its supervisor: after an upgrade the successor still says `yield` to what its
predecessor started. So a word, once released, keeps its meaning, and one that a worker does not know is
ignored. The channel is also the worker's lease of life: when every copy of the other end is closed, it ends.

This module must never wait: whoever reads waits for the descriptor first, with a deadline of its own.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE = 65536  # bytes
MAX_DESCRIPTORS = 64
STOP_SECONDS = 1.0  # a worker's time to drain its rings when it is told to stop

Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message; OSError if the other end is gone."""
    data = json.dumps(message).encode()
    if descriptors:
        socket.send_fds(channel, [data], list(descriptors))
    else:
        channel.send(data)


def receive(channel: socket.socket) -> tuple[Message | None, list[int]]:
    """The next message with its descriptors; None when the other end is closed."""
    data, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, MAX_DESCRIPTORS)
    return (json.loads(data) if data else None), list(descriptors)


def receive_text(channel: socket.socket) -> Message | None:
    """The same from somebody who has no business sending descriptors: the kernel closes what comes.

    What is no JSON is a message without anything in it.
    """
    data = channel.recv(MAX_MESSAGE)
    try:
        return json.loads(data) if data else None
    except (ValueError, RecursionError):
        return {}


def describe_stopped(message: Message) -> str:
    """What a `stopped` message says of the end of a worker, for the log."""
    places = ", ".join(f"{count} {place}" for place, count in message["frames"].items() if count)
    wrong = f"{message['unaccounted']} unaccounted, {message['contradictions']} contradictions"
    return f"stopped, {'drained' if message['drained'] else 'not drained'}; frames: {places}; {wrong}"
