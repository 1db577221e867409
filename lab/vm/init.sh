#!/bin/busybox sh
# The first program of the VM, in the initrd: lays memory over the host's file system and goes on in there.
# If anything fails it says so on the console, which whoever booted it shows, and switches the machine off.
b=/bin/busybox
fail() { echo "init.sh: $*"; $b poweroff -f; }

$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
while read -r module; do
    $b insmod "/modules/$module" || echo "init.sh: cannot load $module"
done </modules/order

$b mount -t virtiofs -o ro host /host || fail "no virtiofs: the host's file system is out of reach"
$b mount -t tmpfs -o size=75% memory /memory
$b mkdir /memory/upper /memory/work
layers=lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work
$b mount -t overlay -o $layers root /root || fail "no overlay"
for directory in dev proc sys; do
    $b mount --move /$directory /root/$directory || fail "cannot move /$directory"
done
$b mount -t tmpfs -o mode=755 run /root/run
$b mount -t tmpfs -o mode=1777 tmp /root/tmp
$b mkdir /root/run/vm
$b mount -t virtiofs run /root/run/vm || fail "no virtiofs: the directory of this run is out of reach"
exec $b switch_root /root /bin/bash /run/vm/guest.sh || fail "no /bin/bash on the host"
