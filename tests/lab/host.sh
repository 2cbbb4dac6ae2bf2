#!/bin/bash
# Owns the lab's hosts: several isolated machines on this one, each with its own root file system (an overlay over a
# Debian root made by roots.sh), processes, network (loopback only), host name, /dev, /run and /tmp.
#
#   host.sh up NAME RELEASE [NEIGHBOUR]          start a host; RELEASE is a root that roots.sh made. With a neighbour, a
#                                                host that runs, it has the neighbour's network
#   host.sh in NAME [--user USER] [--env K=V]... [--] CMD...
#                                                run a command in it (as root unless told), in the user's home
#   host.sh daemon NAME [K=V]...                 start, or restart, its nix-daemon with this environment
#   host.sh put NAME FILE DEST [MODE]            copy a file into it, atomically (MODE: 644, or 755 if executable)
#   host.sh root NAME                            print where its file system is seen from this machine
#   host.sh halt NAME                            kill what runs in it and keep its disk: `up` starts it again from that
#   host.sh down NAME... | --all                 kill what runs in it and delete it; no complaint if it is not there
#   host.sh list                                 NAME RELEASE PID of every host that runs
#
# A host is one process tree: its PID 1 is tini, and all its namespaces and mounts die with that process. Nothing is
# mounted on this machine itself. Its uptime is its own. What a host writes is in $NIX_BROKER_LAB/hosts/NAME (default
# /var/cache/nix-broker-lab), or in memory with NIX_BROKER_LAB_UPPER=tmpfs.
#
# `in` becomes a tini that stands between the caller and the command: signals sent to it reach the command, killing it
# (SIGKILL too) kills the command, stdio is the command's own, and the exit status is the command's (128+N after
# signal N). Users: root, alice (ordinary, may use the daemon), nix-broker (system user, home /var/lib/nix-broker).
#
# Exit status 77: this machine lacks something, which the message names.
set -euo pipefail
umask 022

LAB=${NIX_BROKER_LAB:-/var/cache/nix-broker-lab}
HOSTS=$LAB/hosts
CLEAN_PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

die() { printf 'host: %s\n' "$*" >&2; exit 1; }
lacking() { printf 'host: this machine lacks: %s\n' "$*" >&2; exit 77; }
usage() { sed -n '4,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }

check_name() {
  case $1 in '' | .* | -* | *[!A-Za-z0-9._-]*) die "not a host name: '$1'" ;; esac
  [ ${#1} -le 64 ] || die "host name longer than 64 characters: '$1'"
}

# Field 22 of /proc/PID/stat: with it a process id cannot be mistaken for a later process that got the same number.
start_time() { # PID
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  set -- ${stat##*) }
  [ "$1" != Z ] && [ "$1" != X ] && echo "${20}"
}

# Sets PID to the host's PID 1 as this machine numbers it; fails if the host does not run.
find_host() { # NAME
  local began
  check_name "$1"
  { read -r PID began <"$HOSTS/$1/pid"; } 2>/dev/null && [ "$(start_time "$PID")" = "$began" ]
}

need_host() { find_host "$1" || die "no such host: $1"; }

require_abilities() {
  [ "$(id -u)" = 0 ] || lacking "root (uid 0): a host is made with mounts and namespaces"
  local tool
  for tool in unshare nsenter setpriv pivot_root ip; do
    command -v $tool >/dev/null || lacking "the program $tool (roots.sh installs it)"
  done
  unshare --mount --pid --net --uts --ipc --time true 2>/dev/null ||
    lacking "the right to make namespaces (unshare --mount --pid --net --uts --ipc --time fails)"
  grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || lacking "the overlay file system"
  setpriv --reuid=65534 --regid=65534 --clear-groups unshare --user --map-root-user true 2>/dev/null ||
    lacking "user namespaces for ordinary users (max_user_namespaces=$(cat /proc/sys/user/max_user_namespaces 2>&1)," \
      "unprivileged_userns_clone=$(cat /proc/sys/kernel/unprivileged_userns_clone 2>/dev/null || echo unset))"
}

# Runs as PID 1 of the new namespaces, with this machine's mounts still in view; ends as the host's tini.
# Its standard output is the caller's pipe: it says "ready" once all is in place, and closes it.
become_host() { # NAME RELEASE UPTIME
  local name=$1 home=$HOSTS/$1 lower=$LAB/roots/$2 uptime=$3 new stat device
  read -r stat </proc/self/stat # this /proc still numbers processes as the machine does
  cd "$home"
  set -- ${stat##*) }
  echo "${stat%% *} $((${20} + uptime * 100))" >pid # ticks: here they count from the host's own start
  new=$home/root
  if [ "${NIX_BROKER_LAB_UPPER:-disk}" = tmpfs ]; then mount -t tmpfs -o mode=755 tmpfs "$home/layer"; fi
  rm -rf layer/work # after a halt there is one, which says that it was not unmounted in an orderly way
  mkdir -p layer/upper layer/work "$new"
  # volatile: no fsync reaches the disk; a host never outlives a crash of the machine anyway.
  mount -t overlay overlay -o "lowerdir=$lower,upperdir=layer/upper,workdir=layer/work,volatile" "$new"
  cd "$new"

  mount -t proc -o nosuid,nodev,noexec proc proc
  mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
  mount -t tmpfs -o mode=755,nosuid tmpfs dev
  mkdir dev/pts dev/shm
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5,nosuid,noexec devpts dev/pts
  mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
  for device in null zero full random urandom tty; do
    : >dev/$device
    mount --bind /dev/$device dev/$device
  done
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
  ln -s /proc/self/fd/0 dev/stdin
  ln -s /proc/self/fd/1 dev/stdout
  ln -s /proc/self/fd/2 dev/stderr
  mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
  mkdir -p run/sshd run/lock
  mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp

  ip link set lo up
  echo "$name" >/proc/sys/kernel/hostname
  echo "$name" >etc/hostname
  printf '127.0.0.1 localhost %s\n::1 localhost\n' "$name" >etc/hosts

  # pivot_root, not chroot: Nix before 2.10 re-enters its mount namespace when it starts a program, which would lead
  # out of a chroot. Stacking the old root on "." lets it go without a folder for it.
  pivot_root . .
  /bin/busybox umount -l . # a minimal Debian has no umount
  cd /
  echo ready
  exec /usr/bin/env -i PATH=$CLEAN_PATH HOME=/root /usr/bin/tini -- sleep infinity </dev/null >/dev/null 2>&1
}

# One call at a time may make or delete the host of that name.
lock() { mkdir -p "$HOSTS"; exec 6>"$HOSTS/.$1.lock"; flock 6; } # NAME

up() { # NAME RELEASE [NEIGHBOUR]
  local name=$1 release=$2 home=$HOSTS/$1 uptime network=(unshare --net)
  require_abilities
  [ -x "$LAB/roots/$release/usr/bin/nix" ] || die "no root for '$release' (make it: $(dirname "$0")/roots.sh $release)"
  lock "$name"
  if [ $# = 3 ]; then
    need_host "$3"
    network=(nsenter --net="/proc/$PID/ns/net")
  fi
  if find_host "$name"; then die "host $name is already up"; fi
  if [ "$(cat "$home/halted" 2>/dev/null)" = "$release" ]; then
    rm "$home/halted"
  else
    rm -rf "$home" # what a host that did not get to 'down' may have left
    mkdir "$home" "$home/layer"
  fi
  echo "$release" >"$home/release"
  read -r uptime _ </proc/uptime
  uptime=${uptime%%.*}
  # unshare without --fork: the first process the shell starts becomes PID 1 of the new PID namespace, and the shell
  # itself ends, so nothing of this call remains but the host. The pipe closes when the host is complete, or dead.
  if ! setsid "${network[@]}" unshare --mount --pid --uts --ipc --time --boottime "-$uptime" -- \
    "$BASH" -c 'exec "$@" &' - "$BASH" "$0" become-host "$name" "$release" "$uptime" \
    </dev/null 2>"$home/up.log" 6>&- | grep -qx ready; then
    sed 's/^/host: /' "$home/up.log" >&2
    rm -rf "$home"
    die "host $name did not start"
  fi
}

enter() { # NAME [--user USER] [--env K=V]... [--] CMD...
  local name=$1 user=root variables=() entry uid= gid= dir= shell=
  shift
  while [ $# -gt 0 ]; do
    case $1 in
    --user) user=$2; shift 2 ;;
    --env) variables+=("$2"); shift 2 ;;
    --) shift; break ;;
    -*) die "unknown option of in: $1" ;;
    *) break ;;
    esac
  done
  [ $# -gt 0 ] || die "in: no command given"
  need_host "$name"
  while IFS=: read -r entry _ uid gid _ dir shell; do
    [ "$entry" != "$user" ] || break
  done <"/proc/$PID/root/etc/passwd"
  [ "$entry" = "$user" ] || die "no user $user in host $name"
  # nsenter does not fork here: it becomes the root's tini, still in this machine's PID namespace, whose child is the
  # first process inside the host's. tini passes signals on; --pdeathsig covers the one it cannot (SIGKILL).
  exec nsenter --target "$PID" --mount --uts --ipc --net --time --pid --no-fork -- \
    /usr/bin/tini -s -- \
    /usr/bin/setpriv --reuid="$uid" --regid="$gid" --init-groups --pdeathsig KILL \
    /usr/bin/env -i --chdir="$dir" PATH=$CLEAN_PATH HOME="$dir" USER="$user" LOGNAME="$user" SHELL="$shell" \
    ${TERM:+TERM="$TERM"} "${variables[@]}" "$@"
}

# Inode numbers of the sockets in the host that listen under the daemon's name (flag 00010000: accepts connections).
listening() { awk '$4 == "00010000" && $8 ~ /daemon-socket\/socket/ { print $7 }' "/proc/$PID/net/unix"; }

daemon() { # NAME [K=V]...
  local name=$1 environment=() pair log=/var/log/nix-daemon.log old inner before inode tries=0
  shift
  for pair in "$@"; do environment+=(--env "$pair"); done
  need_host "$name"
  exec 7>"$HOSTS/$name/daemon.lock"
  flock 7
  if read -r old 2>/dev/null <"$HOSTS/$name/daemon.pid"; then
    # As Debian's unit does (KillMode=process): only the listener is stopped, connections it already serves go on.
    "$0" in "$name" sh -c 'kill "$1" 2>/dev/null; n=0
      while [ -d /proc/$1 ] && [ $n -lt 200 ]; do sleep 0.01; n=$((n+1)); done; [ ! -d /proc/$1 ] || kill -9 "$1"' - "$old" 7>&-
  fi
  before=" $(listening | tr '\n' ' ') "
  inner=$("$0" in "$name" "${environment[@]}" sh -c \
    'ulimit -n 1048576 2>/dev/null || ulimit -n "$(ulimit -H -n)"
     setsid nix-daemon --daemon </dev/null >>"$1" 2>&1 & echo $!' - "$log" 7>&-)
  echo "$inner" >"$HOSTS/$name/daemon.pid"
  while [ $tries -lt 1000 ]; do
    for inode in $(listening); do case $before in *" $inode "*) ;; *) return 0 ;; esac; done
    [ -d "/proc/$PID/root/proc/$inner" ] || break
    sleep 0.02
    tries=$((tries + 1))
  done
  tail -n 20 "/proc/$PID/root$log" >&2 || true
  die "nix-daemon of host $name does not accept connections (log: /proc/$PID/root$log)"
}

put() { # NAME FILE DEST [MODE]
  local mode=${4:-}
  [ -f "$2" ] || die "no such file: $2"
  if [ -z "$mode" ]; then if [ -x "$2" ]; then mode=755; else mode=644; fi; fi
  "$0" in "$1" sh -euc 'mkdir -p "$(dirname "$1")"; t=$1.put.$$; trap "rm -f \"$t\"" EXIT
    cat >"$t"; chmod "$2" "$t"; mv -T "$t" "$1"' - "$3" "$mode" <"$2"
}

kill_host() { # NAME
  local tries=0
  if find_host "$1"; then
    kill -9 "$PID" 2>/dev/null || true # PID 1: the kernel kills all the host's processes before this one is gone
    while find_host "$1"; do
      [ $((tries += 1)) -lt 1000 ] || die "host $1 (process $PID) does not die"
      sleep 0.01
    done
  fi
}

halt() { # NAME
  [ "${NIX_BROKER_LAB_UPPER:-disk}" = disk ] || die "halt: the disk of host $1 is in memory"
  lock "$1"
  kill_host "$1"
  cp "$HOSTS/$1/release" "$HOSTS/$1/halted"
}

down() { # NAME
  lock "$1"
  kill_host "$1"
  rm -rf "${HOSTS:?}/$1" "$HOSTS/.$1.lock"
}

names() { local d; for d in "$HOSTS"/*/; do [ -d "$d" ] && basename "$d"; done; return 0; }

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
up) [ $# = 2 ] || [ $# = 3 ] || usage; check_name "$1"; up "$@" ;;
become-host) become_host "$@" ;; # internal: how 'up' runs inside the new namespaces
in) [ $# -ge 2 ] || usage; enter "$@" ;;
daemon) [ $# -ge 1 ] || usage; daemon "$@" ;;
put) [ $# = 3 ] || [ $# = 4 ] || usage; put "$@" ;;
root) [ $# = 1 ] || usage; need_host "$1"; echo "/proc/$PID/root" ;;
halt) [ $# = 1 ] || usage; check_name "$1"; halt "$1" ;;
down)
  [ $# -ge 1 ] || usage
  if [ "$1" = --all ]; then set -- $(names); fi
  for name in "$@"; do check_name "$name"; down "$name"; done ;;
list) for name in $(names); do if find_host "$name"; then echo "$name $(cat "$HOSTS/$name/release") $PID"; fi; done ;;
*) usage ;;
esac
