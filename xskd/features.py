"""What a driver says it can do for XDP and AF_XDP: the kernel's generic netlink family "netdev" (from 6.3).

What is said here is what the driver was written for, not what it will do: virtio_net announces zero-copy and
refuses it without VIRTIO_F_ACCESS_PLATFORM. So this may explain a mode and must never be taken for one; only
XDP_OPTIONS of a bound socket tells that.

Answers are about the calling thread's network namespace. Uses pyroute2's synchronous sockets, which must not
be called inside a running event loop. Nothing here changes anything.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket, GenericNetlinkSocket

FAMILY, DEV_GET = "netdev", 1  # linux/netdev.h, which is newer than Debian 12's headers
ACTIONS = ("basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg")


@dataclass(frozen=True)
class Features:
    """One device: its NETDEV_XDP_ACT_* in the kernel's words, and buffers a zero-copy packet may take.

    `zerocopy_segments` is 0 where the kernel does not tell (before 6.6, or no zero-copy).
    """

    xdp: frozenset[str]
    zerocopy_segments: int


def read_features(ifindexes: Iterable[int]) -> dict[int, Features | None]:
    """Features by interface index, None for an interface or a kernel that does not tell."""
    told = _read_all()
    return {ifindex: told.get(ifindex) for ifindex in ifindexes}


def _read_all() -> dict[int, Features]:
    request = _Device()
    request["cmd"] = DEV_GET
    request["version"] = 1
    with _Netlink() as netlink:
        try:
            netlink.bind(FAMILY, _Device)
        except NetlinkError as error:
            if error.code == errno.ENOENT:  # a kernel before 6.3
                return {}
            raise
        answers = netlink.nlm_request(request, netlink.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP)
        return {answer.get("ifindex"): _features(answer) for answer in answers}


def _features(answer: Any) -> Features:
    bits = answer.get("xdp_features") or 0
    able = (name for number, name in enumerate(ACTIONS) if bits >> number & 1)
    return Features(frozenset(able), answer.get("xdp_zc_max_segs") or 0)


class _Device(genlmsg):  # type: ignore[misc]
    prefix = "NETDEV_A_DEV_"
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        ("NETDEV_A_DEV_XDP_ZC_MAX_SEGS", "uint32"),
    )


class _AsyncNetlink(AsyncGenericNetlinkSocket):  # type: ignore[misc]
    module_err_level = "debug"  # an old kernel is an answer, not an error to log


class _Netlink(GenericNetlinkSocket):  # type: ignore[misc]
    async_class = _AsyncNetlink
