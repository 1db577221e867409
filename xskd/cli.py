"""The command line: `xskd run | check | doctor | reload | status | top | capture | cleanup | schema`.

The only module that prints to standard output and the only one that picks an exit status:

    0   done
    1   a bug: a traceback is above; please report it
    2   the configuration is wrong, or the command line is
    3   nothing could be started, or no daemon answers
    4   `doctor` has found what will fail
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from xskd import __version__
from xskd.errors import ConfigError, Problem, XskdError

EXIT_OK, EXIT_CONFIG, EXIT_UNAVAILABLE, EXIT_FAIL = 0, 2, 3, 4
# Each verb imports what it needs when it runs: `xskd status` must not wait for the daemon's libraries.
# ruff: noqa: PLC0415
RATE_SECONDS = 0.3  # between the two looks that `xskd status` takes its rates from
DEFAULT_CONFIG = Path("/etc/xskd/xskd.yaml")

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status = int(options.verb(options))
        sys.stdout.flush()  # here, where a reader that is gone is no error
        return status
    except ConfigError as error:
        _complain(str(error))
        return EXIT_CONFIG
    except XskdError as error:
        _complain(f"xskd: {error}")
        return EXIT_UNAVAILABLE
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _complain(text: str) -> None:
    """To standard error; the journal takes the mark in front of a line for its priority (sd-daemon(3))."""
    from xskd import logs

    mark = "<3>" if logs.under_journal() else ""
    print("\n".join(mark + line for line in text.splitlines()), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xskd", description="An AF_XDP packet forwarder.")
    parser.add_argument("--version", action="version", version=f"xskd {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser("run", help="forward packets until stopped")
    run.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    run.set_defaults(verb=_run)
    check = verbs.add_parser("check", help="check a configuration against this machine and show its plan")
    check.add_argument("config", type=Path, nargs="?", default=DEFAULT_CONFIG, metavar="FILE")
    check.set_defaults(verb=_check)
    doctor = verbs.add_parser("doctor", help="look for everything that makes AF_XDP fail in practice")
    doctor.add_argument("config", type=Path, nargs="?", metavar="FILE")
    doctor.add_argument("--fix", action="store_true", help="mend what can be undone, and say how")
    doctor.add_argument("--json", action="store_true", help="every finding for a program")
    doctor.set_defaults(verb=_doctor)
    reload = verbs.add_parser("reload", help="have the running daemon read its configuration again")
    reload.add_argument("--dry-run", action="store_true", help="only say what it would do")
    _add_socket(reload)
    reload.set_defaults(verb=_reload)
    status = verbs.add_parser("status", help="ask the running daemon how it is")
    either = status.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true", help="the whole picture for a program")
    either.add_argument("--rules", action="store_true", help="the rules of each interface, and their counts")
    _add_socket(status)
    status.set_defaults(verb=_status)
    top = verbs.add_parser("top", help="watch the running daemon: rates, rings, losses")
    top.add_argument("-d", "--delay", type=_seconds, default=1.0, metavar="SECONDS", help="between two looks")
    top.add_argument("-n", "--number", type=_count, metavar="N", help="print N times as text, then end")
    _add_socket(top)
    top.set_defaults(verb=_top)
    _add_capture(verbs.add_parser("capture", help="write packets that the running daemon forwards to a file"))
    cleanup = verbs.add_parser("cleanup", help="remove an XDP program that a dead xskd left on an interface")
    cleanup.add_argument("interfaces", nargs="+", metavar="INTERFACE")
    cleanup.set_defaults(verb=_cleanup)
    schema = verbs.add_parser("schema", help="print a JSON Schema")
    schema.add_argument(
        "of", nargs="?", choices=("config", "status"), default="config",
        help="of the configuration, for editors, or of what `xskd status --json` prints",
    )  # fmt: skip
    schema.set_defaults(verb=_schema)
    return parser


def _add_socket(parser: argparse.ArgumentParser) -> None:
    """How to find the running daemon."""
    parser.add_argument("--socket", type=Path, metavar="PATH", help="its control socket")
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="take the socket from this file")


def _add_capture(capture: argparse.ArgumentParser) -> None:
    capture.add_argument("where", metavar="PATH[/N]", help="a path, or one worker of it as in wire/0")
    capture.add_argument("-w", "--write", metavar="FILE", help="a pcapng file; - or none: standard output")
    capture.add_argument("--filter", metavar="EXPRESSION", help="only packets it matches; see pcap-filter(7)")
    capture.add_argument("--direction", choices=("in", "out", "both"), default="in", help="default: in")
    capture.add_argument("--count", type=_count, metavar="N", help="end after N packets")
    capture.add_argument("--seconds", type=_seconds, metavar="N", help="end after N seconds")
    capture.add_argument("--snaplen", type=_snaplen, default=65535, metavar="N", help="bytes of each packet")
    _add_socket(capture)
    capture.set_defaults(verb=_capture)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: must be 0.1 to 3600 seconds")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1 on")
    return int(text)


def _snaplen(text: str) -> int:
    number = _count(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: must be at most 65535 bytes")
    return number


def _run(options: argparse.Namespace) -> int:
    from xskd import service

    service.run(options.config)
    return EXIT_OK


def _check(options: argparse.Namespace) -> int:
    from xskd import config, machine, show

    show.plan(machine.look(config.load(options.config)).plan.insist())
    return EXIT_OK


def _doctor(options: argparse.Namespace) -> int:
    from xskd import config, doctor, examine, show

    file, note = options.config, ""
    if file is None and not DEFAULT_CONFIG.exists():
        if options.fix:
            why = "does not exist, and --fix is for the interfaces of a configuration only"
            raise ConfigError([Problem(str(DEFAULT_CONFIG), 0, "", why)])
        wanted, left = examine.defaults()
        note = f"no {DEFAULT_CONFIG} yet: every interface is looked at with the defaults"
        note += f", but {', '.join(left)}, which the default route leads over" if left else ""
    else:
        file = file or DEFAULT_CONFIG
        wanted = config.load(file)
    with show.progress("looking at the machine"):
        findings = doctor.diagnose(examine.examine(wanted))
    done = doctor.mend(findings) if options.fix else []
    if done:
        findings = doctor.diagnose(examine.examine(wanted))
    if options.json:
        print(json.dumps(doctor.shape(file and str(file), findings, done), indent=2))
    else:
        show.doctor(findings, done, note)
    return EXIT_FAIL if doctor.worst(findings) == "FAIL" else EXIT_OK


def _reload(options: argparse.Namespace) -> int:
    from xskd import control, show

    try:
        with show.progress("reloading: until everything that it starts works, or has failed"):
            answer = _Daemon(options).ask("reload", dry=options.dry_run)
    except control.Refused as refused:
        _complain(str(refused))
        return EXIT_CONFIG if refused.config else EXIT_UNAVAILABLE
    print("\n".join(answer["actions"] or ["nothing has changed"]))
    return EXIT_OK


def _capture(options: argparse.Namespace) -> int:
    from xskd import capture, expression

    file = None if options.write in (None, "-") else Path(options.write)
    if file is None and sys.stdout.isatty():
        _complain("xskd: packets are no text for a terminal: use -w FILE, or pipe it into `tcpdump -r -`")
        return EXIT_CONFIG
    try:
        wanted = capture.Wanted.of(options.where, options.direction, options.snaplen, options.filter)
        _Daemon(options).at(lambda at: capture.run(at, wanted, file, options.count, options.seconds))
    except expression.BadExpression as error:
        _complain(f"xskd: {error}")
        return EXIT_CONFIG
    return EXIT_OK


def _cleanup(options: argparse.Namespace) -> int:
    from xskd import xdp

    for interface in options.interfaces:
        program = xdp.cleanup(interface)
        print(f"{interface}: {f'program {program} removed' if program else 'nothing to remove'}")
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    ask = _Daemon(options).ask
    before, at = ask("status")["status"], time.monotonic()
    if options.json:
        print(json.dumps(before, indent=2))
        return EXIT_OK
    from xskd import show

    time.sleep(max(at + RATE_SECONDS - time.monotonic(), 0.0))
    now = ask("status")["status"]
    shown = show.rules if options.rules else show.status
    shown(now, before, time.monotonic() - at)
    return EXIT_OK


def _top(options: argparse.Namespace) -> int:
    from xskd import terminal, top

    if options.number is None and not terminal.is_usable():
        _complain("xskd: top needs a terminal; try `xskd top -n 1`, or `xskd status`")
        return EXIT_CONFIG
    ask = _Daemon(options).ask

    def picture() -> dict[str, Any]:
        return dict(ask("status")["status"])

    if options.number is None:
        top.live(picture, options.delay)
    else:
        top.batch(picture, options.delay, options.number)
    return EXIT_OK


class _Daemon:
    """The running daemon, which listens where the configuration says; also if that is wrong by now."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._wrong: ConfigError | None = None
        try:
            self._where = options.socket or _control_socket(options.config)
        except ConfigError as error:
            from xskd import config

            self._wrong, self._where = error, config.Control().socket

    def at(self, ask: Callable[[Path], T]) -> T:
        """Do something with its socket; where nobody answers, a wrong configuration is what to tell of."""
        from xskd import control

        try:
            return ask(self._where)
        except control.NoAnswer as error:
            raise self._wrong or error from error

    def ask(self, verb: str, **more: object) -> dict[str, Any]:
        """Ask one question."""
        from xskd import control

        return self.at(lambda where: control.ask(where, verb, **more))


def _control_socket(file: Path | None) -> Path:
    """Where the configuration says that the daemon listens."""
    from xskd import config

    where = file or DEFAULT_CONFIG
    known = file is not None or where.exists()
    return (config.load(where).control if known else config.Control()).socket


def _schema(options: argparse.Namespace) -> int:
    from xskd import config, schema

    print(json.dumps(config.schema() if options.of == "config" else schema.status(), indent=2))
    return EXIT_OK
