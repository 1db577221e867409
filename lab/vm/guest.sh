#!/bin/bash
# PID 1 of the VM on the host's file system: finishes the machine, runs the command, switches the machine off.
# All that comes in or goes out is a file of /run/vm, the directory of this run on the host:
#   command, nics    what to run; which interface has which MAC address and lives where
#   output, status   what it said and its exit status; warnings, if the kernel had any
#   up               when the machine was ready, in seconds of its own clock
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
exec </dev/null >/run/vm/output 2>&1

mkdir -p /dev/pts /dev/shm /run/netns
mount -t devpts -o ptmxmode=0666,mode=620,gid=5 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs tracing /sys/kernel/tracing 2>/dev/null # a kernel without tracing has no such place
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    [[ -e /dev/${link%%:*} ]] || ln -s "${link#*:}" "/dev/${link%%:*}"
done
hostname xskd-vm
ip link set lo up

# NICs: the lines of `nics` are NAME MAC NAMESPACE; "-" is the machine's own namespace.
while read -r name mac namespace; do
    for address in /sys/class/net/*/address; do
        [[ $(<"$address") == "$mac" ]] || continue
        device=${address%/address}
        ip link set "${device##*/}" name "$name" mtu 1500
        [[ $namespace == - ]] && ip link set "$name" up && continue 2
        [[ -e /run/netns/$namespace ]] || { ip netns add "$namespace" && ip -n "$namespace" link set lo up; }
        ip link set "$name" netns "$namespace" && ip -n "$namespace" link set "$name" promisc on up
        continue 2
    done
    echo "guest.sh: no interface with address $mac for $name"
done </run/vm/nics

read -r up _ </proc/uptime
echo "$up" >/run/vm/up
bash /run/vm/command
status=$?
cd /
dmesg --level=warn,err,crit,alert,emerg >/run/vm/warnings
echo $status >/run/vm/status
sync
echo o >/proc/sysrq-trigger
sleep infinity
