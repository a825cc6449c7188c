#!/bin/sh
# The guest's first process. Its own output goes to the kernel's console, and
# with it to the log. Lines that depend on the run are put in front of these:
#   marker   what to write before the exit status
#   cgroup   v1 or v2
#   keep_tmp yes if the command's files lie below /tmp, which then stays
#   guest_command  a function that becomes the command
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

fail() {
	echo "reprieve: the guest cannot start: $*"
	echo o >/proc/sysrq-trigger
	sleep 60
}

# The root file system is the host's, read-only. Over it, memory takes the
# writes. /tmp is only where the pieces are put together.
mount -t proc proc /proc || fail "/proc"
mount -t tmpfs -o mode=0755 guest /tmp || fail "a tmpfs"
mkdir /tmp/upper /tmp/work /tmp/root
mount -t overlay -o lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work overlay /tmp/root || fail "the overlay"
cd /tmp/root || fail "the overlay's directory"
mkdir -p proc sys dev tmp run .host
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev
mkdir -p dev/pts dev/shm
mount -t devpts devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=0755 run run
if [ "$keep_tmp" = no ]; then mount -t tmpfs -o mode=1777 tmp tmp; fi
# Not chroot(2): a process in one may not make user namespaces.
pivot_root . .host || fail "pivot_root"
cd /
umount -l /.host && rmdir /.host
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
exec </dev/null

mount_cgroups() {
	if [ "$cgroup" = v2 ]; then
		mount -t cgroup2 cgroup2 /sys/fs/cgroup || fail "cgroup v2"
		echo "+memory +cpu +cpuset +pids" >/sys/fs/cgroup/cgroup.subtree_control || fail "the cgroup controllers"
		return
	fi
	mount -t tmpfs -o mode=0755 cgroup /sys/fs/cgroup
	for controller in memory cpu freezer pids; do
		mkdir "/sys/fs/cgroup/$controller"
		mount -t cgroup -o "$controller" "$controller" "/sys/fs/cgroup/$controller" || fail "cgroup v1 $controller"
	done
}
mount_cgroups

# Whichever tool the host has: iproute2, net-tools, or Python's ioctl
# (0x8914 is SIOCSIFFLAGS; 0x49 the flags up, loopback and running).
ip link set lo up 2>/dev/null || ifconfig lo up 2>/dev/null || python3 -c '
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 0x49))
' || echo "reprieve: the loopback interface stays down: no ip, ifconfig or python3"

# The port to the host comes up on its own time.
port=
tries=0
while [ -z "$port" ] && [ $tries -lt 100 ]; do
	for name in /sys/class/virtio-ports/*/name; do
		[ -e "$name" ] || continue
		read -r found <"$name"
		[ "$found" = reprieve ] || continue
		name=${name%/name}
		port=/dev/${name##*/}
	done
	[ -n "$port" ] || sleep 0.05
	tries=$((tries + 1))
done
[ -n "$port" ] || fail "no port to the host"
exec 3>"$port"

# The command writes to a pipe, not to the port: a port can be opened once
# only, and a program may well open /dev/stderr.
mkfifo /run/output
cat </run/output >&3 &
pump=$!
exec 4>/run/output
rm /run/output
# Whatever else the guest's OOM killer takes, not this.
echo -1000 >/proc/$pump/oom_score_adj

(guest_command) >&4 2>&1 3>&- 4>&-
status=$?
# A daemon left behind may hold the pipe open for ever.
exec 4>&-
(sleep 1; kill $pump 2>/dev/null) &
wait $pump 2>/dev/null
printf '%s%d\n' "$marker" $status >&3

# The host ends the machine when it has read this. Should it not:
sleep 10
echo o >/proc/sysrq-trigger
sleep 60
