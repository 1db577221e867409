"""A day in an hour: xskd under changing load, with faults sprinkled in, and an account at the end.

`scripts/soak --minutes N` boots a machine with a systemd of its own (lab.machine), runs the shipped unit on
it, sends numbered packets through a `connect` and a `reflect` path, and meanwhile kills, stops, restarts,
reloads and overloads it. After each fault the streams pause and everything is counted: what hosts sent, what
hosts got, and under which reason xskd and the kernel counted what is missing.

* streams.py   one process per stream: sends, receives, checks every byte, measures latency
* faults.py    what is done to the machine, one function each
* account.py   where packets went, and what the daemon's processes hold
* report.py    the page at the end, and the promises it is held to

It must never say well what it did not measure, and leaves nothing behind.
"""
