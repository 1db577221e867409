"""The laboratory: network namespaces and veth pairs in which xskd meets real kernels without a NIC.

Tests, demo and bench all build their networks here, so that a figure in the README and a failing test speak
of the same topology. Nothing here may touch an interface, a sysctl or a process that it did not make.
"""

from lab.routers import Routers
from lab.topology import Counters, Topology, entered

__all__ = ["Counters", "Routers", "Topology", "entered"]
