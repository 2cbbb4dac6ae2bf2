#!/bin/bash
# Owns the proof that lab hosts are fit for their purpose: per release, builds through the host's nix-daemon, sandboxed
# builds without it (as nix-broker and as root, in a diverted store), and an sshd that needs no root serving such a
# store over ssh-ng. Also the facts about `host.sh in`: exit status, signals, killing.
#
#   check.sh RELEASE...        prints one line per fact; exit status 0 if all hold. The roots must exist (roots.sh).
set -uo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
WORK=$(mktemp -d)
failed=0 HOST=
trap 'rm -rf "$WORK"; [ -z "$HOST" ] || "$HERE/host.sh" down "$HOST"' EXIT

lab() { "$HERE/host.sh" "$@"; }
inside() { lab in "$HOST" "$@"; }
broker() { inside --user nix-broker -- "$@"; }

fact() { # TEXT CMD...: the command must succeed
  local text=$1; shift
  if "$@" >"$WORK/output" 2>&1; then printf 'ok    %-9s %s\n' "$RELEASE" "$text"
  else failed=1; printf 'FAIL  %-9s %s\n' "$RELEASE" "$text"; sed 's/^/        /' "$WORK/output"; fi
}
exits() { local want=$1 got=0; shift; "$@" || got=$?; [ "$got" = "$want" ] || { echo "exit status $got, not $want"; false; }; }

# The builder is a store path, so that it exists in a sandbox; busybox insists on its file being called busybox.
cat >"$WORK/build.nix" <<'NIX'
{ nonce, check }:
let box = builtins.path { path = /usr/bin; name = "box"; filter = path: type: baseNameOf path == "busybox"; };
in derivation {
  name = "lab-check-${nonce}";
  system = builtins.currentSystem;
  builder = "${box}/busybox";
  args = [ "sh" "-euxc" "${check} && echo built > $out" ];
}
NIX
SANDBOXED='test ! -e /var/lib && test ! -e /usr && set -- /proc/[0-9]* && test $# = 1'

cat >"$WORK/serve.sh" <<'SH'
# Runs as nix-broker in the host: an sshd of its own, whose sessions see a diverted store.
set -eu
d=$HOME/machine
mkdir -p $d/conf $HOME/.ssh && cd $d
ssh-keygen -q -t ed25519 -N '' -f host_key
ssh-keygen -q -t ed25519 -N '' -f client_key
cat >sshd_config <<CONF
ListenAddress 127.0.0.2
Port 2222
HostKey $d/host_key
PidFile none
AuthorizedKeysFile $d/client_key.pub
AuthenticationMethods publickey
UsePAM no
StrictModes no
AllowUsers nix-broker
DisableForwarding yes
PermitTTY no
PermitUserRC no
PrintMotd no
UseDNS no
MaxSessions 1000
MaxStartups 1000
SetEnv NIX_REMOTE=local?root=$d/store NIX_CONF_DIR=$d/conf
CONF
cat >conf/nix.conf <<CONF
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh=/bin/busybox
build-users-group =
substituters =
builders =
CONF
cat >ssh_config <<CONF
Host machine
  HostName 127.0.0.2
  Port 2222
  User nix-broker
  IdentityFile $d/client_key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
CONF
cp ssh_config $HOME/.ssh/config
/usr/sbin/sshd -t -f sshd_config
setsid /usr/sbin/sshd -D -e -f sshd_config </dev/null >sshd.log 2>&1 &
n=0
until ssh machine true 2>/dev/null; do n=$((n + 1)); [ $n -lt 200 ] || { cat sshd.log >&2; exit 1; }; sleep 0.05; done
SH

build() { # USER NONCE CHECK OPTION...
  local user=$1 nonce=$2 check=$3; shift 3
  inside --user "$user" -- timeout 60 nix-build /t/build.nix --no-out-link --argstr nonce "$nonce" --argstr check "$check" "$@"
}
killed_with_in() { # SIGKILL to `in` ends the command too
  "$HERE/host.sh" in "$HOST" sleep 98765 & local pid=$! n=0
  until inside pgrep -fx 'sleep 98765' >/dev/null || [ $((n += 1)) -gt 100 ]; do sleep 0.02; done
  kill -9 $pid; wait $pid 2>/dev/null
  n=0
  while inside pgrep -fx 'sleep 98765' >/dev/null; do [ $((n += 1)) -lt 100 ] || return 1; sleep 0.02; done
}
terminated_through_in() { # the command may handle SIGTERM in its own way and time
  "$HERE/host.sh" in "$HOST" sh -c 'trap "sleep 0.2; exit 5" TERM; : >/tmp/armed; while :; do sleep 0.02; done' & local pid=$! n=0
  until inside test -e /tmp/armed || [ $((n += 1)) -gt 100 ]; do sleep 0.02; done
  kill -TERM $pid; exits 5 wait $pid
}
own_processes_only() {
  local seen; seen=$(inside ps -e -o comm= | sort | tr '\n' ' ')
  [ "$seen" = 'ps sleep tini ' ] || { echo "seen: $seen"; false; }
}
served_build() { # an ordinary remote build: the client is root, as in a daemon's build hook
  inside sh -c 'install -D -m 600 /var/lib/nix-broker/machine/ssh_config /root/.ssh/config' &&
    build root "hook-$$" "$SANDBOXED && test -x /bin/sh" --max-jobs 0 --builders 'ssh-ng://machine - - 4 1'
}
gone() { local root; root=$(lab root "$HOST") && lab down "$HOST" && [ ! -e "$root/etc" ] && lab down "$HOST"; }

[ $# -gt 0 ] || { sed -n '6s/^# *//p' "$0" >&2; exit 2; }
for RELEASE in "$@"; do
  HOST=check-$$-$RELEASE
  lab up "$HOST" "$RELEASE" || exit
  fact 'a host sees only its own processes' own_processes_only
  fact 'exit status passes through' exits 37 inside sh -c 'exit 37'
  fact 'SIGTERM to `in` reaches the command' terminated_through_in
  fact 'SIGKILL of `in` kills the command' killed_with_in
  lab put "$HOST" "$WORK/build.nix" /t/build.nix
  lab put "$HOST" "$WORK/serve.sh" /t/serve.sh
  fact 'nix-daemon starts' lab daemon "$HOST"
  fact 'nix-daemon restarts with an environment' lab daemon "$HOST" LAB_CHECK=1
  fact 'alice builds through the daemon' build alice d 'test -e /usr' --store daemon
  fact 'nix-broker builds in a sandbox, diverted store, no daemon' \
    build nix-broker u "$SANDBOXED" --store 'local?root=/var/lib/nix-broker/x' \
    --option sandbox true --option sandbox-fallback false --option build-users-group ''
  fact 'root builds in a sandbox, diverted store, no build users' \
    build root r "$SANDBOXED" --store 'local?root=/root/x' \
    --option sandbox true --option sandbox-fallback false --option build-users-group ''
  fact 'root builds in a sandbox, diverted store, build users' \
    build root b "$SANDBOXED" --store 'local?root=/root/y' --option sandbox true --option sandbox-fallback false
  fact 'sshd serves without root' broker sh /t/serve.sh
  fact 'nix-daemon --stdio answers over it' broker timeout 20 nix store ping --store ssh-ng://machine
  fact 'a remote build over it runs in a sandbox, with /bin/sh' served_build
  fact 'down leaves nothing, twice' gone
  HOST=
done
exit $failed
