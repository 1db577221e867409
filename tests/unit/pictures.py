"""Pictures of a daemon as `xskd status --json` gives them, for what is drawn of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DROPS = ("undersize", "oversize", "tx_full", "tx_refused", "invalid", "fragments", "no_metadata", "abandoned")
KERNEL = ("rx_dropped", "rx_invalid_descs", "tx_invalid_descs", "rx_ring_full")
BENIGN = ("rx_fill_ring_empty_descs", "tx_ring_empty_descs")
WAKEUPS = ("new", "again", "left", "refilled", "dry", "sleep")
REGIMES = ("working", "spinning", "sleeping", "waking")
SIZES = {"fill": 2048, "rx": 1024, "tx": 1024, "completion": 2048}


def port(
    interface: str = "eth1",
    queue: int = 0,
    *,
    counts: Mapping[str, int] | None = None,
    entries: Mapping[str, int] | None = None,
    high: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """One socket; `counts` sets counters by name, wherever they stand."""
    given = dict(counts or {})

    def taken(names: Sequence[str]) -> dict[str, int]:
        return {name: given.pop(name, 0) for name in names}

    made = {
        "interface": interface,
        "queue": queue,
        "mode_wanted": "auto",
        "mode": "copy",
        "multi_buffer": False,
        "rings": SIZES,
        "kernel": taken((*KERNEL, *BENIGN)),
        "nic_rx_dropped": taken(("drops",)),
        "counters": {
            "drops": taken(DROPS),
            "wakeups": taken(WAKEUPS),
            "ring_entries": {"fill": 2048, "rx": 0, "tx": 0, "completion": 0, **(entries or {})},
            "ring_high_water": {"fill": 2048, "rx": 0, "tx": 0, "completion": 0, **(high or {})},
            **taken(("rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "completion_invalid")),
        },
    }
    assert not given, f"no such counters: {given}"
    return made


def worker(index: int = 0, *ports: dict[str, Any], path: str = "wire", **more: Any) -> dict[str, Any]:
    """One worker of a path."""
    return {
        "name": f"{path}/{index}",
        "path": path,
        "index": index,
        "kind": "connect",
        "state": "forwarding",
        "restarts": {},
        "last_error": None,
        "counters": {
            "frames_unaccounted": 0,
            "frames_in": {"quarantined": 0},
            "regimes_ns": dict.fromkeys(REGIMES, 0),
        },
        "ports": list(ports),
        **more,
    }


def interface(name: str = "eth1", *, path: str = "wire", **more: Any) -> dict[str, Any]:
    verdicts = dict.fromkeys(("redirected", "no_socket_passed", "no_socket_dropped"), 0)
    return {
        **{"name": name, "path": path, "queues": 1, "up": True, "carrier": True, "driver": "veth"},
        **{"attach": "native", "foreign_program": False, "queues_without_socket": 0},
        **{"rx_dropped": {}, "verdicts": verdicts, "rules": [], "default": "redirect", "lane": "off"},
        **more,
    }


def rule(name: str, packets: int = 0, size: int = 0, limited: int = 0, **more: Any) -> dict[str, Any]:
    counts = {"packets": packets, "bytes": size, "limited": limited}
    return {"name": name, "match": "protocol udp", "verdict": "drop", **counts, **more}


def picture(*workers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": "9.8.7",
        "pid": 4711,
        "started": 1_000_000.0,
        "ready": True,
        "text": "1 path, 1 queue forwarding, copy mode",
        "config_error": None,
        "paths": sorted({each["path"] for each in workers}),
        "waiting": {},
        "interfaces": [interface()],
        "workers": list(workers),
        **more,
    }
