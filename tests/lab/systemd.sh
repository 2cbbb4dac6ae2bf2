#!/bin/sh
# A real systemd in a test host: a manager of root's own (`systemd --user`), because a host's PID 1 is not systemd's to be.
# What it runs and how, sockets and restarts most of all, is as in a system; sandboxing is left out, because these hosts
# are namespaces themselves.
#
#   systemd.sh up       start it, with the units of /etc/systemd/system; back when it answers
#   systemd.sh down     end it with everything it runs
#
# `systemctl` speaks to it when it is called as XDG_RUNTIME_DIR=/run/user/0 systemctl --user.
set -eu
b=/bin/busybox
group=/sys/fs/cgroup/nix-broker-lab-$(cat /etc/hostname)
export XDG_RUNTIME_DIR=/run/user/0 SYSTEMD_UNIT_PATH=/etc/systemd/system: SYSTEMD_LOG_TARGET=console

case $1 in
up)
  mkdir -p /run/user/0 /run/systemd/system /etc/systemd/system/nix-broker.service.d
  # Where a system has its journal and its own directories, and what cannot be made inside of namespaces.
  cat >/etc/systemd/system/nix-broker.service.d/lab.conf <<'CONF'
[Service]
StateDirectory=
Environment=STATE_DIRECTORY=/var/lib/nix-broker NIX_BROKER_LOG=nix_broker=debug
StandardOutput=append:/var/lib/nix-broker/broker.log
StandardError=append:/var/lib/nix-broker/broker.log
KeyringMode=inherit
PrivateDevices=false
PrivateMounts=false
PrivateTmp=false
ProcSubset=all
ProtectClock=false
ProtectControlGroups=false
ProtectHome=false
ProtectHostname=false
ProtectKernelLogs=false
ProtectKernelModules=false
ProtectKernelTunables=false
ProtectProc=default
ProtectSystem=false
RestrictNamespaces=false
CONF
  setsid unshare --mount "$0" inside </dev/null >/var/log/systemd.log 2>&1 &
  tries=0
  until systemctl --user is-active --quiet basic.target 2>/dev/null; do
    [ $((tries += 1)) -lt 600 ] || { cat /var/log/systemd.log; exit 1; }
    sleep 0.1
  done
  # A system's manager is spoken to by every service's user; this one is root's own.
  chmod 755 /run/user/0 /run/user/0/systemd
  chmod 777 /run/user/0/systemd/notify
  ;;
inside)
  # A control group of its own, whose root it sees; gone when the manager is.
  $b mount -t tmpfs tmpfs /sys/fs/cgroup
  $b mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir "$group"
  sh -c 'echo $$ >"$1/cgroup.procs" && exec unshare --cgroup --mount sh -c "
    $2 umount /sys/fs/cgroup && $2 mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
      exec /usr/lib/systemd/systemd --user --unit=basic.target --log-target=console"' - "$group" $b || true
  while ! find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.1; done
  ;;
down)
  systemctl --user exit
  tries=0
  while pgrep -f 'systemd.sh inside' >/dev/null; do
    [ $((tries += 1)) -lt 600 ] || exit 1
    sleep 0.1
  done
  ;;
esac
