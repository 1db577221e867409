"""The doctor on zero-copy NICs knows their traps, and mends the one that eats VLAN tags."""

from __future__ import annotations

from pathlib import Path

from daemon import paths
from nics import RINGS, MakeNics
from test_doctor_checks import Doctor
from test_zc_packets import TAG
from test_zc_rings import arrived

pytest_plugins = "nics"

SIZES = "queues: [0], rings: {{fill: {}, rx: 512, tx: 512, completion: 512}}"


def config(fill: int = 2048, size: int = 4096) -> str:
    devices = ("v0", "i0")
    interface = SIZES.format(fill)
    return paths(
        "wire: {connect: [v0, i0]}", *devices, interface=interface, rest=f"umem: {{frame_size: {size}}}"
    )


def test_the_traps_of_zero_copy_drivers_are_seen(nics: MakeNics, tmp_path: Path) -> None:
    net = nics("v0", "i0")
    found, _, _ = Doctor(net, tmp_path, config(fill=512, size=2048)).ask()
    for dev, verdict in (("v0", "WARN"), ("i0", "OK")):  # virtio_net is a module here
        assert found[dev, "zero-copy"]["verdict"] == verdict
        assert found[dev, "multi-buffer"]["verdict"] == "WARN"  # igb cuts packets in frames of 2,048 bytes
    assert found["v0", "fill ring"]["verdict"] == "WARN"
    assert found["v0", "fill ring"]["mend"] == "set interfaces.v0.rings.fill: 2048"
    found, _, _ = Doctor(net, tmp_path, config()).ask()
    for dev in ("v0", "i0"):
        assert {found[dev, each]["verdict"] for each in ("multi-buffer", "fill ring", "MTU")} == {"OK"}


def test_vlan_tags_are_stripped_until_the_doctor_mends_it(ready: MakeNics, tmp_path: Path) -> None:
    """Seen as an XSK sees it: a raw socket gets tags beside the packet, whoever took them off."""
    net = ready("i0")
    member = net.receiver("i0", 0, rings=RINGS)
    bare = net.frames(16)
    tagged = [packet[:12] + TAG + packet[12:] for packet in bare]

    def seen() -> list[bytes]:
        net.taps[0].send(tagged)
        return arrived(member, 16, 5)

    doctor = Doctor(net, tmp_path, paths("wire: {reflect: i0}", "i0", interface=SIZES.format(2048)))
    net.ethtool("-K", "i0", "rxvlan", "on")
    assert net.has_carrier("i0")
    assert seen() == bare, "the driver does not strip tags any more"
    found, fixes, _ = doctor.ask("--fix")
    assert "VLAN stripping" in {fix["check"] for fix in fixes if fix["subject"] == "i0" and fix["success"]}
    assert found["i0", "VLAN stripping"]["verdict"] == "OK"
    assert net.has_carrier("i0")
    assert seen() == tagged
    for fix in fixes:
        net.run(net.dut, *fix["undo"].split())
