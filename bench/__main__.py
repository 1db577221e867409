"""The bench's command line: run a campaign, or render one that was kept. See README.md and scripts/bench."""

import argparse
import os
import sys
from pathlib import Path

from bench.campaign import Record, compare
from bench.report import markdown, picture
from lab import Topology

_HERE = Path(__file__).parent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Compare xskd with other forwarders.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="window of one measurement")
    parser.add_argument("--quick", action="store_true", help="one round of one second: does everything work?")
    parser.add_argument("--only", action="append", default=[], help="contenders whose name contains this")
    parser.add_argument("--budget", type=float, default=840.0, help="seconds the whole may take")
    parser.add_argument("--results", type=Path, default=_HERE / "results", help="folder for the records")
    parser.add_argument("--picture", type=Path, help="draw the speed into this PNG file")
    parser.add_argument("--from", dest="kept", type=Path, help="measure nothing, render this record")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1.0
    return arguments


def main() -> int:
    """Run what was asked for; the table goes to standard output, progress to standard error."""
    arguments = _arguments()
    if arguments.kept:
        record = Record.read(arguments.kept)
    elif os.geteuid() != 0:
        print("bench: needs root, to make network namespaces: use sudo scripts/bench", file=sys.stderr)
        return 1
    else:
        Topology.cleanup_stale("xskd-bench")
        record = compare(arguments.rounds, arguments.seconds, arguments.budget, arguments.only)
        arguments.results.mkdir(parents=True, exist_ok=True)
        print(f"record: {record.write(arguments.results)}", file=sys.stderr)
    table = markdown(record)
    print(table)
    if not arguments.kept and not arguments.quick:
        (arguments.results / "latest.md").write_text(table)
    if arguments.picture:
        picture(record, arguments.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
