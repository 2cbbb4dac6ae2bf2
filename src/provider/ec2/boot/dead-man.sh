#!/bin/sh
# Ends this machine when nobody needs it any more, whatever became of the broker.
#
#   dead-man.sh       one look; a timer runs it every 30 s
#   dead-man.sh arm   starts that timer, and one that ends the machine at the hard limit whatever the looks say;
#                     where an image brings units with these names, they are taken to be it
#
# Off, when `systemctl poweroff` (which terminates the instance) is due:
#   uptime >= hard                             it has lived long enough
#   lease age >= lease, and nothing builds     the broker is gone
#   lease age >= lease-busy                    the broker is gone, even though something builds
#   nothing built, and not in use, for idle    the broker renews the lease for ever and wants nothing
# Every time is this machine's own uptime, so that a clock that is set does no harm. Limits, in seconds, are lines
# NAME=NUMBER of /etc/nix-broker/limits (an image's) and /run/nix-broker/limits (this boot's, which win). The broker
# renews the lease by writing the uptime to /run/nix-broker/lease_at, and the same to used_at while it uses the machine.
#
# NIX_BROKER_ROOT stands before every path, for tests.
root=${NIX_BROKER_ROOT-}
run=$root/run/nix-broker
umask 022
# A transient unit of NixOS finds nothing but systemd's own programs.
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p "$run"

# A number that cannot be read is the default: a broken file must not keep a machine alive.
checked() { # VALUE DEFAULT
  case $1 in '' | *[!0-9]* | 0?* | ??????????*) echo "$2" ;; *) echo "$1" ;; esac
}
number() { # FILE DEFAULT
  value=
  [ ! -r "$1" ] || read -r value <"$1"
  checked "$value" "$2"
}
limit() { # NAME DEFAULT
  value=$(checked "$(cat "$root/etc/nix-broker/limits" "$run/limits" 2>/dev/null | sed -n "s/^$1=//p" | tail -n 1)" "$2")
  [ "$value" -gt 0 ] || value=$2
  echo "$value"
}
later() { # NUMBER NUMBER
  if [ "$1" -ge "$2" ]; then echo "$1"; else echo "$2"; fi
}
write() { # FILE VALUE
  echo "$2" >"$1.new" && mv -f "$1.new" "$1"
}
say() {
  echo "nix-broker: $*" >&2
  { echo "nix-broker: $*" >"$root/dev/console"; } 2>/dev/null
}

lease=$(limit lease 900)
lease_busy=$(limit lease-busy 3600)
idle=$(limit idle 1200)
hard=$(limit hard 28800)

# Without default dependencies they go on ticking while the machine shuts down, and so see to it that it does.
timer() { # UNIT WHEN COMMAND...
  unit=$1 when=$2
  shift 2
  ! systemctl is-active --quiet "$unit.timer" || return 0
  systemd-run --quiet --unit="$unit" $when --property=DefaultDependencies=no \
    --timer-property=DefaultDependencies=no --timer-property=AccuracySec=5s "$@"
}
if [ "${1-}" = arm ]; then
  # A moment later than a look finds out, so that there is time for an orderly end.
  timer nix-broker-hard-limit "--on-boot=$((hard + 120))s" "$(command -v systemctl)" poweroff --force --force
  limited=$?
  timer nix-broker-dead-man "--on-boot=30s --on-unit-active=30s" /bin/sh "$run/dead-man.sh" && exit "$limited"
  exit 1
fi

now=
read -r now rest <"$root/proc/uptime"
now=$(checked "${now%%.*}" '')
[ -n "$now" ] || { say "dead-man: no uptime; only the hard limit is left"; exit 1; }

armed_at=$(number "$run/armed_at" "$now")
write "$run/armed_at" "$armed_at"

# The uptime counts hibernation. A gap between two looks that long was one: the broker gets a whole lease to come back,
# and the time asleep, which was not paid for, does not count towards the hard limit.
asleep=$(number "$run/asleep" 0)
resumed_at=$(number "$run/resumed_at" 0)
gap=$((now - $(number "$run/looked_at" "$now")))
if [ "$gap" -gt 600 ]; then
  asleep=$((asleep + gap)) resumed_at=$now
  write "$run/asleep" "$asleep"
  write "$run/resumed_at" "$resumed_at"
fi
write "$run/looked_at" "$now"

# What was written in the future is no good.
past() { # FILE
  value=$(number "$1" 0)
  [ "$value" -le "$now" ] || value=0
  later "$value" "$(later "$armed_at" "$resumed_at")"
}

# Builds belong to the group nixbld, or, with auto-allocate-uids, to a user from 872415232 on.
builds() {
  gid=$(sed -n 's/^nixbld:[^:]*:\([0-9][0-9]*\):.*/\1/p' "$root/etc/group" 2>/dev/null | head -n 1)
  grep -qsE "^(Gid:[[:space:]]+${gid:-none}|Uid:[[:space:]]+8(7[2-9]|80)[0-9]{6})[[:space:]]" "$root"/proc/[0-9]*/status
}
busy=
if builds; then
  busy=yes
  write "$run/busy_at" "$now"
fi

lease_age=$((now - $(past "$run/lease_at")))
idle_for=$((now - $(later "$(past "$run/busy_at")" "$(past "$run/used_at")")))
reason=
if [ $((now - asleep)) -ge "$hard" ]; then
  reason="it has been up for $((now - asleep)) s, and $hard s is the limit"
elif [ "$lease_age" -ge "$lease_busy" ]; then
  reason="nothing was heard of the broker for $lease_age s"
elif [ "$lease_age" -ge "$lease" ] && [ -z "$busy" ]; then
  reason="nothing was heard of the broker for $lease_age s, and nothing builds"
elif [ "$idle_for" -ge "$idle" ]; then
  reason="nothing was built for $idle_for s"
fi
# Once decided it stays so: the shutdown has begun.
[ ! -e "$run/off" ] || read -r reason <"$run/off"
[ -n "$reason" ] || exit 0

off_at=$(number "$run/off_at" "$now")
write "$run/off_at" "$off_at"
write "$run/off" "$reason"
say "powering off: $reason"
# Something may be in the way of an orderly shutdown, and of one that only kills.
overdue=$((now - off_at))
[ "$overdue" -ge 90 ] || ! systemctl poweroff || exit 0
[ "$overdue" -ge 180 ] || ! systemctl poweroff --force || exit 0
systemctl poweroff --force --force || echo o >"$root/proc/sysrq-trigger"
