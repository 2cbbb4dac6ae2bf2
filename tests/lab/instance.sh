#!/bin/sh
# Owns what an EC2 instance with NixOS does as it starts, on a lab host that is one (cloud.py makes those).
#
#   instance.sh boot ADDRESS [BROKEN...]    the whole of it; each program that is named fails from then on
#   instance.sh restart UNIT                what `systemctl restart` comes to
#
# What NixOS has and a lab host has not: systemd (units here are processes with a pid in /run/units, timers are loops on
# the machine's own uptime, and a poweroff is a file that cloud.py looks for), a firewall (whose rules are written to
# /run/rules), and curl (of which there is as much as the heartbeat needs). Everything else is real: the user-data, sshd, Nix, and the dead-man with its timers.
set -eu

serve() { # UNIT COMMAND...
  unit=$1
  shift
  setsid "$@" </dev/null >>"/run/$unit.log" 2>&1 &
  echo $! >"/run/units/$unit"
}

start() { # UNIT
  case $1 in
  sshd.service) serve "$1" /usr/sbin/sshd -D -e -o "ListenAddress=$(cat /run/address)" ;;
  nix-daemon.service) serve "$1" nix-daemon --daemon ;;
  *) echo "instance: no unit $1" >&2; exit 1 ;;
  esac
}

# Only the listener ends, as with systemd's KillMode=process: what it serves goes on.
stop() { # UNIT
  pid=$(cat "/run/units/$1")
  kill "$pid" 2>/dev/null || true
  while [ -d "/proc/$pid" ]; do sleep 0.05; done
}

program() { # NAME, its text on standard input
  for broken in $BROKEN; do
    if [ "$broken" = "$1" ]; then
      printf '#!/bin/sh\necho "%s does not work here" >&2\nexit 1\n' "$1" >"/usr/sbin/$1"
      chmod 755 "/usr/sbin/$1"
      return
    fi
  done
  cat >"/usr/sbin/$1"
  chmod 755 "/usr/sbin/$1"
}

programs() {
  program systemctl <<'SYSTEMCTL'
#!/bin/sh
case "$1 $2" in
"is-active --quiet")
  case $3 in
  *.timer) [ -e "/run/units/$3" ] ;;
  *) [ -d "/proc/$(cat "/run/units/$3" 2>/dev/null || echo none)" ] ;;
  esac ;;
"restart "*) exec /t/instance.sh restart "$2" ;;
"poweroff "*) : >/run/poweroff ;;
*) echo "systemctl: the lab has no '$*'" >&2; exit 1 ;;
esac
SYSTEMCTL
  # Each look comes `--on-unit-active` after the one before, the first one at the uptime `--on-boot`.
  program systemd-run <<'SYSTEMD_RUN'
#!/bin/sh
first=0 again=
while :; do
  case $1 in
  --unit=*) unit=${1#*=} ;;
  --on-boot=*s) first=${1#*=} first=${first%s} ;;
  --on-unit-active=*s) again=${1#*=} again=${again%s} ;;
  --quiet | --property=DefaultDependencies=no | --timer-property=DefaultDependencies=no | --timer-property=AccuracySec=5s) ;;
  --property=Restart=always | --property=RestartSec=10 | --property=IOSchedulingClass=idle) ;;
  --*) echo "systemd-run: the lab has no '$1'" >&2; exit 1 ;;
  *) break ;;
  esac
  shift
done
: >"/run/units/$unit.timer"
# A transient unit finds hardly a program.
setsid env -i PATH=/run/nothing /bin/sh -c 'PATH=/usr/bin:/bin; first=$1 again=$2; shift 2
  while read -r up rest </proc/uptime && [ "${up%%.*}" -lt "$first" ]; do sleep 1; done
  while :; do PATH=/run/nothing "$@"; [ -n "$again" ] || exit; sleep "$again"; done' - "$first" "$again" "$@" \
  </dev/null >>"/run/$unit.log" 2>&1 &
SYSTEMD_RUN
  for name in iptables ip6tables; do
    program $name <<'TABLES'
#!/bin/sh
case " $* " in
*" -C "*) grep -qsxFe "${0##*/} $*" /run/rules ;;
*" -I "*) echo "${0##*/} $*" | sed 's/ -I / -C /' >>/run/rules ;;
*) exit 1 ;;
esac
TABLES
  done
  program curl <<'CURL'
#!/bin/bash
method=GET write= headers=()
while [ $# -gt 0 ]; do
  case $1 in
  -X) method=$2; shift 2 ;;
  -H) headers+=("$2"); shift 2 ;;
  -w) write=$2; shift 2 ;;
  -m) shift 2 ;;
  -s | -f) shift ;;
  -*) echo "curl: the lab has no '$1'" >&2; exit 2 ;;
  *) url=${1#http://}; shift ;;
  esac
done
exec 3<>"/dev/tcp/${url%%/*}/80" || exit 7
printf '%s\r\n' "$method /${url#*/} HTTP/1.0" "Host: ${url%%/*}" "${headers[@]}" '' >&3
read -r _ status _ <&3
while IFS= read -r line <&3 && [ "$line" != $'\r' ]; do :; done
cat <&3
[ -z "$write" ] || printf '\n%s' "$status"
CURL
  for broken in $BROKEN; do program "$broken" </dev/null; done
}

# NixOS takes the host key from the user-data before sshd starts, if it has none. It splits at pipe characters whatever
# comes before the key, which is why nothing may.
apply_user_data() {
  key=/etc/ssh/ssh_host_ed25519_key
  [ ! -e $key ] || return 0
  (umask 077; awk '/[|]/ || /SSH_HOST_ED25519_KEY:/ { gsub("[|]", "\n"); sub("SSH_HOST_ED25519_KEY:", ""); print }' \
    /etc/ec2-metadata/user-data >$key)
  sed -n 's/SSH_HOST_ED25519_KEY_PUB://p' /etc/ec2-metadata/user-data >$key.pub
  ssh-keygen -l -f $key >/dev/null # NixOS takes what it finds; a key that sshd does not understand fails here
}

# What amazon-init finds of programs: coreutils and a few more, and systemd's own.
amazon_init() {
  mkdir -p /run/amazon-init
  for file in $(dpkg -L coreutils grep sed tar gzip git nix-bin | grep '/bin/') /usr/sbin/systemctl /usr/sbin/systemd-run; do
    ln -sf "$file" "/run/amazon-init/${file##*/}"
  done
  env -i PATH=/run/amazon-init HOME=/root /bin/bash /etc/ec2-metadata/user-data </dev/null >/run/amazon-init.log 2>&1
}

case $1 in
boot)
  BROKEN=$(shift 2; echo "$*")
  mkdir -p /run/units /nix/store
  echo "$2" >/run/address
  sed -i 's/^sandbox = .*/sandbox = true/' /etc/nix/nix.conf # as NixOS has it
  programs
  case $2 in 127.*) ;; *) ip address replace "$2/32" dev lo ;; esac
  apply_user_data
  start sshd.service
  start nix-daemon.service
  amazon_init
  ;;
restart) stop "$2"; start "$2" ;;
*) exit 2 ;;
esac
