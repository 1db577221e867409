"""One interface in the picture of the daemon: put together from what the supervisor's parts know of it.

Asks the kernel for nothing but what its program has counted, and changes nothing.
"""

from __future__ import annotations

from xskd.config import Config
from xskd.lanes import Lanes
from xskd.netdev import NetDevice
from xskd.nic import Nics
from xskd.plan import InterfacePlan, Plan
from xskd.programs import Programs
from xskd.status import InterfaceStatus, RuleStatus


class Pictures:
    """Draws interfaces, there or not."""

    def __init__(self, programs: Programs, lanes: Lanes, nics: Nics) -> None:
        self._programs, self._lanes, self._nics = programs, lanes, nics

    def interface(
        self, name: str, path: str, config: Config, plan: Plan, device: NetDevice | None
    ) -> InterfaceStatus:
        """An interface of a path of this configuration, as `plan` runs and `device` was last seen."""
        program = self._programs.by_name.get(name)
        planned = next((each for each in plan.interfaces if each.name == name), None)
        taken = {port.queue for worker in plan.workers for port in worker.ports if port.interface == name}
        counts = self._programs.counts(name)
        wanted = config.paths[path]
        return InterfaceStatus(
            name=name,
            path=path,
            queues=device.queues if device else 0,
            carrier=bool(device and device.carrier),
            fallback=planned.fallback if planned else wanted.fallback,
            attach_wanted=config.interfaces[name].attach,
            attach=program.attach_mode if program else None,
            verdicts=counts.verdicts,
            up=bool(device and device.up),
            driver=device.driver if device else "",
            foreign_program=bool(
                device and device.xdp_prog_id and device.xdp_prog_id not in self._programs.ours
            ),
            queues_without_socket=len(set(range(device.queues)) - taken) if device else 0,
            zerocopy_able="xsk-zerocopy" in device.features.xdp if device and device.features else None,
            rx_dropped=self._nics.received(name),
            verdict_bytes=counts.verdict_bytes,
            unroutable=counts.unroutable if planned and planned.kind == "route" else {},
            unparsed=counts.unparsed,
            default=planned.rules.default
            if planned
            else config.rules_of(name).effective(wanted.express).default,
            rules=self._rules(planned) if planned and program else (),
            express=wanted.express,
            lane=self._lanes.of(name),
        )

    def _rules(self, plan: InterfacePlan) -> tuple[RuleStatus, ...]:
        """The rules in force with what they have counted, the default last; none if there are none."""
        tallies = self._programs.rule_tallies(plan.name)
        told = {rule.name: (rule.text, rule.verdict) for rule in plan.rules.rules}
        return tuple(
            RuleStatus(
                label, *told.get(label, ("", plan.rules.default)), tally.packets, tally.bytes, tally.limited
            )
            for label, tally in tallies.items()
        )
