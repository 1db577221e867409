"""The checks of `xskd doctor` that are about no interface: kernel, rights, memory, CPUs.

Like those in checks.py; what mends them belongs to the whole machine, so none may offer a Fix.
"""

from __future__ import annotations

from collections.abc import Callable

from xskd import checks_route
from xskd.errors import errno_name
from xskd.findings import Answer, Facts, fail, ok, warn
from xskd.plan import listed
from xskd.umem import HUGE_PAGE

MIB = 1 << 20
NEEDED = {  # capability: what fails without it
    "CAP_NET_ADMIN": "making the XSKMAP and attaching the program",
    "CAP_NET_RAW": "opening AF_XDP sockets",
    "CAP_BPF": "loading the program",
    "CAP_PERFMON": "having it verified as it runs",
}


def kernel(facts: Facts) -> Answer:
    """FAIL before Linux 5.18; WARN before 6.4, where a restart keeps old workers."""
    version = facts.machine.kernel
    seen = "Linux {}.{}".format(*version)
    if version < (5, 18):
        return fail(seen, "programs in xdp.frags need 5.18", "install a newer kernel")
    if version < (6, 4):
        why = "rings of a bound socket cannot be mapped before 6.4: a restart keeps the old worker processes"
        return warn(seen, why, "install a newer kernel")
    return ok(seen)


def af_xdp(facts: Facts) -> Answer:
    """FAIL if the kernel opens no AF_XDP socket for this process."""
    error = facts.machine.af_xdp
    if not error:
        return ok("sockets can be opened")
    seen = f"socket(AF_XDP): {errno_name(error)}"
    if "CAP_NET_RAW" not in facts.machine.capabilities:
        return fail(seen, "only CAP_NET_RAW may open AF_XDP sockets", "run as root")
    return fail(seen, "the kernel has to be built with CONFIG_XDP_SOCKETS", "install another kernel")


def capabilities(facts: Facts) -> Answer:
    """FAIL without CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON."""
    held = facts.machine.capabilities | (
        {"CAP_BPF", "CAP_PERFMON"} if "CAP_SYS_ADMIN" in facts.machine.capabilities else set()
    )
    missing = [name for name in NEEDED if name not in held]
    if not missing:
        return ok(", ".join(NEEDED))
    why = "; ".join(f"{name} is for {NEEDED[name]}" for name in missing)
    return fail(f"this process lacks {', '.join(missing)}", f"{why}; the unit has them", "run as root")


def memlock(facts: Facts) -> Answer:
    """FAIL if packet memory is more than RLIMIT_MEMLOCK, without CAP_IPC_LOCK."""
    if "CAP_IPC_LOCK" in facts.machine.capabilities:
        return ok("no limit with CAP_IPC_LOCK")
    limit, need = facts.machine.memlock, facts.plan.memory_bytes if facts.plan else 0
    if limit is None:
        return ok("no limit")
    seen = f"{mib(limit)} may be pinned, packet memory takes {mib(need)}"
    if limit >= need:
        return ok(seen)
    why = "XDP_UMEM_REG answers ENOBUFS beyond RLIMIT_MEMLOCK; the unit has CAP_IPC_LOCK instead"
    return fail(seen, why, "prlimit --pid $$ --memlock=unlimited")


def bpf_jit(facts: Facts) -> Answer | None:
    """WARN if programs are interpreted."""
    if facts.machine.jit is None:
        return None
    if facts.machine.jit:
        return ok("on")
    why = "every packet's program is interpreted"
    return warn("off", why, "sysctl net.core.bpf_jit_enable=1")


def huge_pages(facts: Facts) -> Answer | None:
    """FAIL if `umem.huge_pages` needs more than are free."""
    if facts.config is None or facts.plan is None or not facts.config.umem.huge_pages:
        return None
    need, free = -(-facts.plan.memory_bytes // HUGE_PAGE), facts.machine.free_huge_pages
    seen = f"{need} of 2 MiB are needed, {free} are free"
    if need <= free:
        return ok(seen)
    if facts.machine.daemon:
        return ok(f"{seen}; xskd runs and has its own")
    return fail(
        seen,
        "a worker without its memory cannot start",
        f"sysctl vm.nr_hugepages={facts.machine.huge_pages + need - free}",
    )


def cpus(facts: Facts) -> Answer | None:
    """FAIL if `cpus` names one that this process may not use."""
    if facts.config is None:
        return None
    named = {c for path in facts.config.paths.values() if path.cpus != "auto" for c in path.cpus}
    missing = sorted(named - facts.machine.cpus)
    if missing:
        seen = (
            f"this process may not use CPU {listed(missing)}; it may use {listed(sorted(facts.machine.cpus))}"
        )
        return fail(seen, "the configuration names them", "choose others in paths.*.cpus")
    return ok(f"{listed(sorted(facts.machine.cpus))} may be used")


def irqbalance(facts: Facts) -> Answer:
    """WARN if it runs and an interface has interrupts."""
    if not facts.machine.irqbalance:
        return ok("does not run")
    if not any(interface.interrupts for interface in facts.interfaces):
        return ok("runs; no interface here has interrupts of its own")
    why = "it moves interrupts to CPUs on which workers run, and away from where you put them"
    return warn("runs", why, "systemctl disable --now irqbalance")


def mib(size: int) -> str:
    """A number of bytes, in MiB."""
    return f"{size / MIB:.0f} MiB"


MACHINE: dict[str, Callable[[Facts], Answer | None]] = {
    "kernel": kernel,
    "AF_XDP": af_xdp,
    "capabilities": capabilities,
    "memlock": memlock,
    "BPF JIT": bpf_jit,
    "huge pages": huge_pages,
    "CPUs": cpus,
    "irqbalance": irqbalance,
    **checks_route.MACHINE,
}
