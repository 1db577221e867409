"""The first file system of the VM: busybox, kernel modules in the order they load, and init.sh as /init.

Debian's kernels have nearly everything as a module, and their packages lack the list of which module needs
which (it is made on installation). Every module says itself what it needs, so the order is worked out here,
and all of them are loaded before the command runs: nothing in the VM loads modules later.
"""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterable
from pathlib import Path

INIT = Path(__file__).with_name("init.sh")
DIRECTORIES = ("bin", "dev", "proc", "sys", "modules", "host", "memory", "root")
# To reach the root; what the tests make; what they filter with; the NICs. Any of it may be built in.
MODULES = (
    *("virtio_pci", "virtiofs", "overlay"),
    *("veth", "bridge", "tun", "macvlan", "vxlan", "8021q", "sch_ingress", "sch_prio", "sch_multiq"),
    *("cls_matchall", "cls_flower", "cls_u32", "act_skbedit", "act_gact", "act_mirred"),
    # crc32c_generic first: nf_tables asks the crypto layer for it, not by a dependency
    *("crc32c_generic", "nf_tables", "nft_ct", "nft_limit", "nft_chain_nat", "nft_reject_inet"),
    *("xsk_diag", "virtio_net", "igb"),
)


def modules(tree: Path, wanted: Iterable[str] = MODULES) -> dict[str, bytes]:
    """Return these modules of an unpacked kernel and all they need, by name, in the order they load.

    What the tree lacks is left out: it is built in, or the kernel does not have it and a test will say so.
    """
    files = {_name(file.name): file for file in tree.glob("**/lib/modules/*/kernel/**/*.ko*")}
    loaded: dict[str, bytes] = {}

    def need(module: str) -> None:
        if module not in files or module in loaded:
            return
        body = _unpacked(files[module])
        for needed in _depends(body):
            need(needed)
        loaded[module] = body

    for module in wanted:
        need(module)
    return loaded


def initrd(tree: Path, busybox: Path) -> bytes:
    """Return a cpio archive for this unpacked kernel."""
    archive = bytearray()
    for directory in DIRECTORIES:
        archive += _entry(directory, 0o040755)
    archive += _entry("bin/busybox", 0o100755, busybox.read_bytes())
    archive += _entry("init", 0o100755, INIT.read_bytes())
    loaded = modules(tree)
    for name, body in loaded.items():
        archive += _entry(f"modules/{name}.ko", 0o100644, body)
    archive += _entry("modules/order", 0o100644, "".join(f"{name}.ko\n" for name in loaded).encode())
    return bytes(archive + _entry("TRAILER!!!", 0))


def _name(file: str) -> str:
    """Return a module's name as other modules call it."""
    return file.partition(".ko")[0].replace("-", "_")


def _unpacked(file: Path) -> bytes:
    body = file.read_bytes()
    return {".xz": lzma.decompress, ".gz": gzip.decompress}.get(file.suffix, bytes)(body)


def _depends(module: bytes) -> list[str]:
    """Return what a module says it needs, in its section .modinfo."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [_name(name) for name in found[1].decode("ascii").split(",") if name] if found else []


def _entry(name: str, mode: int, body: bytes = b"") -> bytes:
    """Make one file of an archive in the format `newc`: fields of eight digits, parts of four bytes."""
    text = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(text), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + text
    return _padded(head) + _padded(body)


def _padded(part: bytes) -> bytes:
    return part + b"\0" * (-len(part) % 4)
