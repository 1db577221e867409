"""`python -m lab.vm run [--kernel 6.1|6.12|backports] [--nics] -- COMMAND...`, `python -m lab.vm fetch`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.vm import KERNELS, FetchError, Nics, Vm, VmError
from lab.vm.fetch import EMULATOR, fetched

NO_RESULT = 125  # the exit status when the machine gave none, as env(1) and timeout(1) have it


def main() -> int:
    """Do what the command line says and return the exit status."""
    options = _options()
    try:
        if options.action == "fetch":
            for what in (EMULATOR, *(options.kernels or KERNELS)):
                print(f"{what}: {fetched(what, renew=options.renew)}")
            return 0
        return _machine(options).run(options.command, show=True)
    except (FetchError, VmError) as error:
        print(f"lab.vm: {error}", file=sys.stderr)
        return NO_RESULT


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.vm", description="a VM with a kernel of one's choice"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    fetch = actions.add_parser("fetch", help="download QEMU and kernels")
    fetch.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(KERNELS)} (default: all)")
    fetch.add_argument("--renew", action="store_true", help="ask for newer versions of what is there")
    run = actions.add_parser("run", help="boot, run a command, end with its exit status")
    run.add_argument("--kernel", choices=KERNELS, default="backports")
    run.add_argument(
        "--nics", action="store_true", help="v0 v1 p0 (virtio_net), i0 i1 (igb), the other ends in `gen`"
    )
    run.add_argument("--cabled", action="store_true", help="NICs joined in pairs, without `gen`")
    run.add_argument("--queues", type=int, default=4, help="of virtio_net (default: %(default)s)")
    run.add_argument("--cpus", type=int, default=2)
    run.add_argument("--memory", type=int, default=2000, metavar="MIB")
    run.add_argument("--seconds", type=float, default=300.0, help="until the machine is killed")
    run.add_argument("--own-time", action="store_true", help="its clock stands still while the host is busy")
    run.add_argument("--directory", type=Path, help="the command's /run/vm, kept (default: a temporary one)")
    run.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    if options.action == "fetch" and (unknown := set(options.kernels) - set(KERNELS)):
        parser.error(f"no such kernel: {', '.join(unknown)}")
    return options


def _machine(options: argparse.Namespace) -> Vm:
    nics = None
    if options.nics or options.cabled:
        nics = Nics(queues=options.queues, cabled=options.cabled)
    return Vm(
        kernel=options.kernel,
        nics=nics,
        cpus=options.cpus,
        memory=options.memory,
        seconds=options.seconds,
        directory=options.directory,
        own_time=options.own_time,
    )


if __name__ == "__main__":
    sys.exit(main())
