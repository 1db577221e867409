"""A virtual machine with a kernel of one's choice: the checkout, as it lies here, under another Linux.

What the project says about other kernels and about zero-copy has to be tried on them, and neither a developer
nor CI has five machines. `python -m lab.vm run --kernel 6.1 -- COMMAND` boots a kernel of Debian's under
emulation, with the machine's own file system in it, runs one command as root, and ends with its exit status.

Three files, in the order in which they matter: fetch.py brings QEMU and kernels, initrd.py makes the first
file system, boot.py runs the machine; init.sh and guest.sh are the two programs inside that come before the
command. Nothing is installed, and the machine outside cannot be changed: its file system is shared read-only,
with memory laid over it.
"""

from lab.vm.boot import Nics, Vm, VmError
from lab.vm.fetch import KERNELS, FetchError

__all__ = ["KERNELS", "FetchError", "Nics", "Vm", "VmError"]
