#!/bin/sh
# Makes this machine the builder that its user-data asks for. Runs before sshd on every boot.
#
#   setup.sh USER_DATA
#
# User-data is a list of NAME=VALUE lines: `client-key`, who may log in; `features`, what Nix offers, words; `lease`,
# `lease-busy`, `idle`, `hard`, the limits of the dead-man in seconds; `version`, said back in the file that says ready.
# Lines of other forms are not ours: NixOS takes the host key (SSH_HOST_ED25519_KEY:...) out by itself. A script (`#!`), which is
# what an image without this module is launched with, is run as it is.
#
# The dead-man does not wait for any of this. NIX_BROKER_ROOT stands before every path, for tests.
root=${NIX_BROKER_ROOT-}
run=$root/run/nix-broker
umask 022
mkdir -p "$run"
rm -f "$run/ready" "$run/failed" "$run/phases"

up() { cut -d ' ' -f 1 "$root/proc/uptime"; }
phase() { echo "$(up) $1" >>"$run/phases"; }
fail() {
  echo "$1" >"$run/failed.new" && mv -f "$run/failed.new" "$run/failed"
  echo "nix-broker: not ready: $1" >&2
  # Not a failure for systemd: the machine stays up for as long as its limits say, so that somebody can read why.
  exit 0
}
# The last line of this name that has only harmless characters.
value() { # NAME
  sed -n "s/^$1=\([A-Za-z0-9+/=@._ -]*\)\$/\1/p" "$data" | tail -n 1
}

data=$1
[ -r "$data" ] || fail "there is no user-data"
if [ "$(head -c 2 "$data")" = '#!' ]; then exec sh "$data"; fi

for limit in lease lease-busy idle hard; do
  case $(value $limit) in '' | *[!0-9]*) ;; *) echo "$limit=$(value $limit)" ;; esac
done >"$run/limits.new" && mv -f "$run/limits.new" "$run/limits"
phase armed

key=$(value client-key)
case $key in
'ssh-ed25519 '* | 'ecdsa-sha2-nistp256 '* | 'ssh-rsa '*) ;;
*) fail "the user-data has no client-key" ;;
esac
mkdir -p "$root/root/.ssh" && chmod 700 "$root/root/.ssh" &&
  printf '%s\ncert-authority,restrict %s\n' "$key" "$key" >"$root/root/.ssh/authorized_keys.new" && chmod 600 "$root/root/.ssh/authorized_keys.new" &&
  mv -f "$root/root/.ssh/authorized_keys.new" "$root/root/.ssh/authorized_keys" || fail "the client-key cannot be put in place"
phase "sshd configured"

# nix.conf ends with an include of this file. An nix-daemon that runs already has read it without.
echo "system-features = $(value features)" >"$run/nix.conf.new" && mv -f "$run/nix.conf.new" "$run/nix.conf" &&
  systemctl try-restart nix-daemon.service || fail "Nix cannot be configured"
phase "nix configured"

phase ready
version=$(value version)
echo "${version:-1} $(up)" >"$run/ready.new" && mv -f "$run/ready.new" "$run/ready"
