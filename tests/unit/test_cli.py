"""The command line without a daemon: verbs, exit statuses, and what goes to which stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import connect, device, outlook
from jsonschema import Draft202012Validator

from xskd import __version__, cli, config, control, machine, xdp
from xskd.errors import XdpError

ROOT = Path(__file__).parents[2]
BAD = "interfaces: {eth1: {mode: fast}}\npaths: {echo: {reflect: eth1}}\nmetric: {}\n"


def xskd(*args: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "xskd", *args)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    return file


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"xskd {__version__}\n"


def test_it_runs_as_a_module() -> None:
    done = xskd("--version")
    assert (done.returncode, done.stdout) == (0, f"xskd {__version__}\n")


@pytest.mark.parametrize(
    "wrong",
    [
        *([], ["start"], ["run", "--fast"], ["status", "--socket"], ["reload", "now"], ["cleanup"]),
        *(
            ["schema", "top"],
            ["top", "-d", "0"],
            ["top", "-d", "nan"],
            ["top", "-n", "0"],
            ["top", "-n", "x"],
        ),
    ],
)
def test_a_wrong_command_line_is_refused_like_a_wrong_file(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(wrong)
    assert capsys.readouterr().err.startswith("usage: xskd")


def test_the_schema_is_valid_and_takes_the_shipped_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(schema)
    shipped = yaml.safe_load((ROOT / "config" / "xskd.yaml").read_text())
    assert list(Draft202012Validator(schema).iter_errors(shipped)) == []
    assert not Draft202012Validator(schema).is_valid({**shipped, "metric": {}})


@pytest.mark.parametrize("verb", [["check"], ["run", "-c"], ["status", "-c"]])
def test_every_error_of_a_file_goes_to_standard_error_with_its_place(
    verb: list[str], bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*verb, str(bad)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    first, second = said.err.splitlines()
    assert first.startswith(f"{bad}:1: interfaces.eth1.mode: must be ")
    assert second == f"{bad}:3: metric: unknown key; did you mean metrics?"


@pytest.mark.parametrize("verb", [["check"], ["run", "-c"], ["status", "-c"]])
def test_a_file_that_cannot_be_read_is_a_wrong_configuration(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.yaml"
    assert cli.main([*verb, str(missing)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{missing}: ")


def test_an_interface_that_is_missing_is_a_wrong_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("interfaces:\n  nowhere7: {}\npaths: {echo: {reflect: nowhere7}}\n")
    assert cli.main(["check", str(file)]) == 2
    assert capsys.readouterr().err.startswith(f"{file}:2: interfaces.nowhere7: no such interface")


@pytest.mark.parametrize("verb", [["status"], ["status", "--json"], ["top", "-n", "1"]])
def test_no_daemon_is_unavailable_and_prints_nothing(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "control.sock"
    assert cli.main([*verb, "--socket", str(where)]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"xskd: no xskd answers on {where} (")


def test_status_asks_where_its_configuration_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    head = "interfaces: {eth1: {}}\npaths: {echo: {reflect: eth1}}\n"
    file.write_text(head + f"control: {{socket: {tmp_path}/mine.sock}}\n")
    assert cli.main(["status", "-c", str(file)]) == 3
    assert f"no xskd answers on {tmp_path}/mine.sock" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m xskd schema | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=30, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"{", b"")


@pytest.mark.parametrize("verb", ["status", "reload", "top -n 1"])
def test_asking_loads_none_of_the_daemons_libraries(verb: str, tmp_path: Path) -> None:
    code = (
        f"import sys; from xskd import cli; cli.main([*'{verb}'.split(), '--socket', '{tmp_path}/none']);"
        "print({'pydantic', 'pyroute2', 'yaml', 'prometheus_client'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"


# ---- reload ---------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str, dict[str, Any]]]:
    """What a daemon that agrees to everything was asked."""
    questions: list[tuple[Path, str, dict[str, Any]]] = []

    def ask(path: Path, verb: str, **more: Any) -> dict[str, Any]:
        questions.append((path, verb, more))
        return {"ok": True, "actions": ["eth1: fallback drop", "wire/0: stop"]}

    monkeypatch.setattr(control, "ask", ask)
    return questions


@pytest.mark.parametrize(("more", "dry"), [([], False), (["--dry-run"], True)])
def test_a_reload_prints_what_was_done(
    more: list[str],
    dry: bool,
    asked: list[tuple[Path, str, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["reload", "--socket", "/x.sock", *more]) == 0
    assert asked == [(Path("/x.sock"), "reload", {"dry": dry})]
    assert capsys.readouterr().out == "eth1: fallback drop\nwire/0: stop\n"


def test_a_reload_that_changes_nothing_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(control, "ask", lambda *_, **__: {"ok": True, "actions": []})
    assert cli.main(["reload", "--socket", "/x.sock"]) == 0
    assert capsys.readouterr().out == "nothing has changed\n"


@pytest.mark.parametrize(("is_config", "status"), [(True, 2), (False, 3)])
def test_a_reload_that_is_refused_says_why_in_the_daemons_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_config: bool, status: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise control.Refused("x.yaml:1: one\nx.yaml:2: two", config=is_config)

    monkeypatch.setattr(control, "ask", refuse)
    assert cli.main(["reload", "--socket", "/x.sock"]) == status
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "x.yaml:1: one\nx.yaml:2: two\n")


def test_a_reload_without_a_daemon_is_unavailable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reload", "--socket", f"{tmp_path}/none"]) == 3
    assert capsys.readouterr().err.startswith(f"xskd: no xskd answers on {tmp_path}/none (")


def test_a_daemon_is_found_where_it_listens_also_if_the_file_is_bad_by_now(
    bad: Path, asked: list[tuple[Path, str, dict[str, Any]]]
) -> None:
    cli.main(["reload", "-c", str(bad)])
    assert asked == [(config.Control().socket, "reload", {"dry": False})]


def test_a_bad_file_without_a_daemon_is_a_bad_file(
    bad: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(*_: Any, **__: Any) -> None:
        raise control.NoAnswer("no xskd answers")

    monkeypatch.setattr(control, "ask", nobody)
    assert cli.main(["reload", "-c", str(bad)]) == 2
    assert capsys.readouterr().err.startswith(f"{bad}:1: interfaces.eth1.mode: must be ")


# ---- check ----------------------------------------------------------------------------------------


def test_a_path_that_would_have_to_wait_does_not_pass_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(connect())
    monkeypatch.setattr(
        machine, "look", lambda _: outlook(connect(), device("eth1"), device("eth2", mtu=9000))
    )
    assert cli.main(["check", str(file)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.split(": ")[1]) == ("", "interfaces.eth2")
    monkeypatch.setattr(machine, "look", lambda _: outlook(connect(), device("eth1"), device("eth2")))
    assert cli.main(["check", str(file)]) == 0
    assert "wire/0" in capsys.readouterr().out


# ---- cleanup --------------------------------------------------------------------------------------


def test_cleanup_says_for_each_interface_what_was_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(xdp, "cleanup", {"eth1": 17, "eth2": None}.__getitem__)
    assert cli.main(["cleanup", "eth1", "eth2"]) == 0
    assert capsys.readouterr().out == "eth1: program 17 removed\neth2: nothing to remove\n"


def test_cleanup_of_what_is_not_ours_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def foreign(interface: str) -> None:
        raise XdpError("cleanup", interface=interface, detail="program 9 is not of xskd")

    monkeypatch.setattr(xdp, "cleanup", foreign)
    assert cli.main(["cleanup", "eth1"]) == 3
    assert capsys.readouterr().err == "xskd: cleanup(eth1): program 9 is not of xskd\n"
