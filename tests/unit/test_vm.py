"""The VM without a machine: what is fetched, what its first file system is, what its NICs are."""

from __future__ import annotations

import lzma
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.vm import FetchError, Nics, Vm, VmError, __main__, boot, fetch, initrd

URIS = """Reading package lists...
'http://deb/pool/libc6_2.41-12_amd64.deb' libc6_2.41-12_amd64.deb 28 SHA256:0
'http://deb/pool/qemu-system-x86_1%3a10.0-1_amd64.deb' qemu-system-x86_1%3a10.0-1_amd64.deb 11 SHA256:0
"""
DEPENDS = """linux-image-amd64
  Depends: linux-image-7.3.4+deb13-amd64
linux-image-7.3.4+deb13-amd64
  Depends: kmod
  Depends: linux-binary-7.3.4+deb13-amd64
linux-binary-7.3.4+deb13-amd64
linux-modules-7.3.4+deb13-amd64
kmod
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XSKD_VM_CACHE", str(tmp_path / "cache"))
    return fetch.cache()


class Debian:
    """Answers instead of apt and dpkg; `version` is what there is to be had."""

    def __init__(self) -> None:
        self.version = "1:10.0-1"
        self.asked: list[str] = []

    def __call__(self, *command: str, cwd: str | None = None) -> str:
        words = [word for word in command if "=" not in word and word != "-o"]
        self.asked.append(" ".join(words[:2]))
        if command[0] == "dpkg-deb":
            Path(command[-1]).mkdir(exist_ok=True)
            Path(command[-1], Path(command[-2]).stem).touch()
        if "download" in words:
            assert cwd is not None
            for package in words[words.index("download") + 1 :]:
                Path(cwd, f"{package}.deb").touch()
        answers = {
            "indextargets": "http://security.debian.org/\nhttp://deb/\n",
            "--print-uris": URIS,
            "depends": DEPENDS,
            "show": f"Package: x\nVersion: {self.version}\n",
        }
        return next((answer for word, answer in answers.items() if word in words), "")


@pytest.fixture
def debian(monkeypatch: pytest.MonkeyPatch) -> Debian:
    made = Debian()
    monkeypatch.setattr(fetch, "_run", made)
    return made


def test_the_emulator_is_what_it_is_with_every_library_under_its_version(cache: Path, debian: Debian) -> None:
    tree = fetch.fetched(fetch.EMULATOR)
    assert tree == cache / "qemu-system-x86_1.10.0-1"  # no colon: it goes into a list of library directories
    assert {file.name for file in tree.iterdir()} == {"qemu-system-x86", "libc6"}
    source = (cache / "apt/trixie/sources.list").read_text()
    assert source == f"deb [signed-by={fetch.KEYRING}] http://deb/ trixie main\n"


def test_a_kernel_is_all_its_packages_and_nothing_else(cache: Path, debian: Debian) -> None:
    debian.version = "7.3.4-1~bpo13+1"
    tree = fetch.fetched("backports")
    assert tree.name == "linux-image-7.3.4+deb13-amd64_7.3.4-1~bpo13+1"
    assert {file.name for file in tree.iterdir()} == {
        f"linux-{part}-7.3.4+deb13-amd64" for part in ("image", "binary", "modules")
    }


def test_what_is_there_is_not_asked_for_again_until_it_is_to_be_renewed(cache: Path, debian: Debian) -> None:
    first = fetch.fetched(fetch.EMULATOR)
    asked = len(debian.asked)
    assert fetch.fetched(fetch.EMULATOR) == first
    assert len(debian.asked) == asked
    assert fetch.fetched(fetch.EMULATOR, renew=True) == first  # there is no newer one
    assert first.exists()
    debian.version = "1:10.0-2"
    second = fetch.fetched(fetch.EMULATOR, renew=True)
    assert second.exists()
    assert not first.exists()


def test_a_download_that_fails_says_why_and_leaves_nothing(
    cache: Path, debian: Debian, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*command: str, cwd: str | None = None) -> str:
        if "download" in command:
            raise FetchError("apt-get download: 404")
        return debian(*command, cwd=cwd)

    monkeypatch.setattr(fetch, "_run", fails)
    with pytest.raises(FetchError, match="404"):
        fetch.fetched(fetch.EMULATOR)
    assert {entry.name for entry in cache.iterdir()} == {"apt", "lock"}


def test_a_command_that_fails_is_named_with_its_complaint() -> None:
    with pytest.raises(FetchError, match=r"^sh -c .*: no such suite$"):
        fetch._run("sh", "-c", "echo no such suite >&2; exit 3")
    with pytest.raises(FetchError, match="not-a-program"):
        fetch._run("not-a-program", "x")


def test_a_machine_without_an_archive_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_run", lambda *command: "http://security.debian.org/\n")
    with pytest.raises(FetchError, match="no archive configured"):
        fetch._mirror()


# ---- the first file system --------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """An unpacked kernel whose igb needs dca and i2c-algo-bit, which needs i2c-core."""
    needs = {"igb": "dca,i2c-algo-bit", "dca": "", "i2c-algo-bit": "i2c-core", "i2c-core": "", "veth": "gone"}
    directory = tmp_path / "kernel/usr/lib/modules/7/kernel/drivers"
    directory.mkdir(parents=True)
    for number, (name, depends) in enumerate(needs.items()):
        body = f"\x7fELF\0license=GPL\0depends={depends}\0name={name}\0".encode()
        packed = lzma.compress(body) if number % 2 else body
        (directory / f"{name}.ko{'.xz' if number % 2 else ''}").write_bytes(packed)
    return tmp_path / "kernel"


def test_modules_come_after_what_they_need(kernel: Path) -> None:
    found = initrd.modules(kernel, ["igb", "veth", "virtio_pci"])
    assert list(found) == ["dca", "i2c_core", "i2c_algo_bit", "igb", "veth"]
    assert all(body.startswith(b"\x7fELF") for body in found.values())


def test_the_archive_is_one_that_cpio_reads(kernel: Path, tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"a shell")
    files = unpacked(initrd.initrd(kernel, busybox))
    assert files["bin/busybox"] == (0o100755, b"a shell")
    assert files["init"] == (0o100755, initrd.INIT.read_bytes())
    assert files["modules/order"] == (0o100644, b"veth.ko\ndca.ko\ni2c_core.ko\ni2c_algo_bit.ko\nigb.ko\n")
    assert files["modules/igb.ko"][1].startswith(b"\x7fELF")
    assert files["proc"][0] == 0o040755


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a cpio archive in the format newc: mode and content by name."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        body = at + 110 + length + -(110 + length) % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[body : body + size])
        at = body + size + -size % 4


# ---- the machine ------------------------------------------------------------------------------------


def test_each_nic_has_a_name_an_address_and_a_way_to_its_other_end() -> None:
    nics = Nics(queues=4)
    ends = {name: (mac, namespace) for name, mac, namespace in nics.ends()}
    own = {"v0", "v1", "i0", "i1", "p0"}
    assert {name for name, (_, namespace) in ends.items() if namespace == "-"} == own
    assert {name for name, (_, namespace) in ends.items() if namespace == "gen"} == {
        f"g{name}" for name in own
    }
    assert len({mac for mac, _ in ends.values()}) == 10
    links = nics.links().splitlines()
    assert "tuntap add dev t-v0 mode tap multi_queue" in links
    assert "tuntap add dev t-gv0 mode tap" in links
    for end, bridge in (("v0", "b-v0"), ("gv0", "b-v0"), ("gi1", "b-i1")):
        assert f"link set t-{end} addrgenmode none mtu 9600 master {bridge} up" in links
    assert all(len(name) < 16 for line in links for name in line.split() if name.startswith(("t-", "b-")))


def test_zero_copy_of_virtio_needs_its_feature() -> None:
    devices = [word for word in Nics().arguments(Path("/x")) if "netdev=" in word]
    able = {re.findall(r"netdev=(\w+)", word)[0] for word in devices if "iommu_platform=on" in word}
    assert able == {"v0", "v1"}
    assert any("mq=on,vectors=10,netdev=v0,mac=02:7a:63:01:00:00" in word for word in devices)


def test_cables_join_each_pair_and_need_nothing_of_the_host() -> None:
    nics = Nics(cabled=True)
    assert nics.links() == ""
    assert [name for name, _, _ in nics.ends()] == ["v0", "i0", "v1", "i1"]  # no igb beside an igb
    backends = [word for word in nics.arguments(Path("/x")) if word.startswith("dgram")]
    assert backends[0] == (
        "dgram,id=v0,local.type=unix,local.path=/x/cable-v0,remote.type=unix,remote.path=/x/cable-v1"
    )
    assert "local.path=/x/cable-v1,remote.type=unix,remote.path=/x/cable-v0" in backends[2]


class Emulated(Vm):
    """A machine whose QEMU is a shell that does what `does` says, in the directory of the run."""

    does = ""

    def run(self, command: Sequence[str], *, show: bool = False) -> int:
        assert self.directory is not None
        self._prepare(self.directory, command, b"initrd")
        shell = ("sh", "-c", f"cd {self.directory}; {self.does}")
        with boot._started(shell, self.directory / "qemu.log", {}) as machine:
            self._follow(machine, self.directory / "output", show)
        return self._status(self.directory)


def test_the_exit_status_is_the_commands_and_what_it_says_is_passed_on(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    machine = Emulated(directory=tmp_path / "run")
    machine.does = "echo said >output; echo 7 >status"
    assert machine.run(["a", "b c"], show=True) == 7
    assert capfdbinary.readouterr().out == b"said\n"
    assert (tmp_path / "run/command").read_text() == f"cd {Path.cwd()} && exec a 'b c'\n"


def test_a_machine_that_leaves_no_status_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    machine = Emulated(directory=tmp_path)
    (tmp_path / "status").write_text("0")  # of a run before
    machine.does = "echo 'Kernel panic' >console; echo 'no accelerator'"
    with pytest.raises(VmError, match=r"(?s)no result.*console: Kernel panic.*qemu.log: no accelerator"):
        machine.run(["true"])


def test_a_clock_of_its_own_is_that_of_one_thread_that_counts_instructions() -> None:
    assert Vm()._clock() == ("-accel", "tcg,thread=multi")
    assert Vm(own_time=True)._clock() == ("-accel", "tcg,thread=single", "-icount", "shift=2")


def test_a_machine_that_does_not_end_is_ended(tmp_path: Path) -> None:
    machine = Emulated(directory=tmp_path, seconds=0.2)
    machine.does = "exec sleep 60"
    with pytest.raises(VmError, match=r"within 0\.2 s"):
        machine.run(["true"])


def test_the_command_line_says_125_when_there_is_no_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(what: str, *, renew: bool = False) -> Path:
        raise FetchError("apt-get update: no network")

    monkeypatch.setattr(boot, "fetched", unreachable)
    monkeypatch.setattr(sys, "argv", ["lab.vm", "run", "--kernel", "6.1", "--nics", "--", "true"])
    assert __main__.main() == __main__.NO_RESULT
    assert "lab.vm: apt-get update: no network" in capsys.readouterr().err


def test_a_kernel_nobody_knows_is_refused() -> None:
    done = subprocess.run(
        (sys.executable, "-m", "lab.vm", "fetch", "5.4"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no such kernel: 5.4" in done.stderr
