"""Takes the pictures of the dashboards that are in docs/: real traffic, real trouble, a real browser.

A lab with xskd between three hosts runs for about two minutes. There is traffic all the time, and one after
another come the things an operator should recognise: a flood that no worker can keep up with, a worker
killed, a configuration that is refused, a link that goes down and comes back. A Prometheus looks on, and at
the end headless Chromium draws every dashboard of those minutes. It must never make anything up; nothing in
the pictures is changed but the number of colours.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image, ImageChops

from lab import Topology
from lab.grafana import ROOT, settings, viewer
from lab.grafana import prometheus as prometheus_of
from xskd import control
from xskd.errors import XskdError

DOCS = ROOT / "docs"
METRICS = "127.0.0.1:9478"
QUEUES, READY_SECONDS = 2, 20.0
WIDTH, TALLEST = 1500, 6000
COLOURS = (256, 160, 96, 64)  # as many as the size allows
LARGEST = 250_000  # bytes of a picture
MINUTES = 2
NOBODY = "10.99.0.200"  # an address that only a static neighbour entry knows: its packets come back reflected


def configuration(directory: Path) -> str:
    """Two paths, so that there is something to tell apart."""
    return f"""\
interfaces:
  eth1: {{}}
  eth2: {{}}
  eth3: {{}}
paths:
  wire: {{connect: [eth1, eth2]}}
  mirror: {{reflect: eth3}}
metrics: {{listen: "{METRICS}"}}
control: {{socket: {directory / "control.sock"}}}
"""


class Scene:
    """The daemon with its traffic, and the troubles that befall it."""

    def __init__(self, lab: Topology, directory: Path) -> None:
        self.lab, self.socket, self.file = lab, directory / "control.sock", directory / "xskd.yaml"
        self.file.write_text(configuration(directory), encoding="utf-8")
        with (directory / "xskd.log").open("wb") as log:
            command = (sys.executable, "-m", "xskd", "run", "-c", str(self.file))
            self.daemon = lab.popen(lab.dut, *command, stderr=log)
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"xskd did not start; it said:\n{(directory / 'xskd.log').read_text()}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return bool(control.ask(self.socket, "status")["status"]["ready"])
        except XskdError:
            return False

    def traffic(self) -> None:
        """What goes on all the time: pings through the wire, a stream beside them, and reflected packets."""
        lab, (first, second, third) = self.lab, self.lab.hosts
        lab.popen(first, "ping", "-q", "-i", "0.002", lab.ip_of(1))
        lab.popen(second, "iperf3", "--server")
        lab.run(third, "ip", "neigh", "add", NOBODY, "lladdr", "02:00:00:00:00:fe", "dev", "eth0")
        lab.popen(third, "ping", "-q", "-i", "0.005", NOBODY)
        time.sleep(0.5)
        lab.popen(first, "iperf3", "-c", lab.ip_of(1), "-t", "3600", "-b", "40M", "-P", "2")

    def flood(self, seconds: float) -> None:
        """More small packets than one worker can take: RX overruns."""
        command = (sys.executable, "-m", "bench.generator", "64")
        generator = self.lab.popen(self.lab.hosts[0], *command)
        time.sleep(seconds)
        generator.terminate()

    def kill_a_worker(self) -> None:
        """The supervisor has to bring it back."""
        os.kill(control.ask(self.socket, "status")["status"]["workers"][0]["pid"], signal.SIGKILL)

    @contextmanager
    def refused_configuration(self) -> Iterator[None]:
        """A mistake in the file, mended at the end."""
        right = self.file.read_text(encoding="utf-8")
        self.file.write_text(right.replace("reflect", "reflekt"), encoding="utf-8")
        self.daemon.send_signal(signal.SIGHUP)
        try:
            yield
        finally:
            self.file.write_text(right, encoding="utf-8")
            self.daemon.send_signal(signal.SIGHUP)

    @contextmanager
    def link_down(self) -> Iterator[None]:
        """The mirror's host takes its link away."""
        self._set_link("down")
        try:
            yield
        finally:
            self._set_link("up")

    def _set_link(self, state: str) -> None:
        self.lab.run(self.lab.hosts[2], "ip", "link", "set", "eth0", state)

    def story(self) -> int:
        """Two minutes, the quiet in between included; when they ended, in milliseconds.

        The flood comes last and is under way then, so that the figures of now have something to say.
        """
        self.traffic()
        time.sleep(30)
        self.kill_a_worker()
        time.sleep(20)
        with self.refused_configuration():
            time.sleep(10)
        time.sleep(10)
        with self.link_down():
            time.sleep(10)
        time.sleep(20)
        self.flood(15)
        ended = int(time.time() * 1000) - 2000
        time.sleep(3)  # the last of it is still being asked for
        return ended


def take(address: str, uid: str, ended: int, file: Path) -> None:
    """Have Chromium draw the last minutes of one dashboard, and make the picture small."""
    span = f"from={ended - MINUTES * 60_000}&to={ended}"
    with tempfile.TemporaryDirectory(prefix="xskd-chromium-") as profile:
        raw = Path(profile) / "raw.png"
        command = (
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            "--run-all-compositor-stages-before-draw",  # or every canvas is empty
            *(f"--user-data-dir={profile}", f"--window-size={WIDTH},{TALLEST}", f"--screenshot={raw}"),
            *("--virtual-time-budget=20000", f"{address}d/{uid}?{span}&refresh=off"),
        )
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not raw.exists():
            raise SystemExit(f"chromium drew nothing; it said:\n{done.stderr}")
        _shrink(raw, file)


def _shrink(raw: Path, file: Path) -> None:
    """Cut off what is empty below, and keep as few colours as it takes."""
    with Image.open(raw) as opened:
        picture = opened.convert("RGB")
    ground = Image.new("RGB", picture.size, picture.getpixel((0, picture.height - 1)))
    box = ImageChops.difference(picture, ground).getbbox()
    if box is None:
        raise SystemExit(f"{file.name} would be empty")
    picture = picture.crop((0, 0, picture.width, box[3] + 8))
    for colours in COLOURS:
        # By coverage, or the few pixels of a line get their neighbour's colour.
        picture.quantize(colours, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)
        if file.stat().st_size <= LARGEST:
            return
    raise SystemExit(f"{file.name} has {file.stat().st_size} bytes, more than {LARGEST}")


def main() -> int:
    """Run the scene and take every picture."""
    parser = argparse.ArgumentParser(prog="scripts/pictures", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--keep", action="store_true", help="leave it running until Enter, to look around")
    parser.add_argument("--into", type=Path, default=DOCS, help="directory for the pictures (default: docs)")
    options = parser.parse_args()
    Topology.cleanup_stale("xskd-pictures")
    with (
        tempfile.TemporaryDirectory(prefix="xskd-pictures-") as directory,
        Topology("xskd-pictures", links=3, queues=QUEUES) as lab,
    ):
        scene = Scene(lab, Path(directory))
        with prometheus_of(lab, Path(directory), METRICS), viewer(lab.dut, port=0) as address:
            print(f"{address} shows what is to be drawn, in two minutes", flush=True)
            ended = scene.story()
            for dashboard in settings()["dashboards"]:
                file = options.into / f"dashboard-{dashboard['uid']}.png"
                take(address, dashboard["uid"], ended, file)
                print(f"{file}: {file.stat().st_size // 1000} kB", flush=True)
            if options.keep:
                print("Enter ends it.", flush=True)
                sys.stdin.readline()
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
