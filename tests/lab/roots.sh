#!/bin/bash
# Owns the Debian roots that lab hosts are made of: small folders with real Nix and OpenSSH, one per Debian release,
# built once and then only ever read (host.sh puts an overlay over them).
#
#   roots.sh RELEASE...        bookworm (Nix 2.8), trixie (Nix 2.26), forky (Nix 2.34)
#
# A root is $NIX_BROKER_LAB/roots/RELEASE (NIX_BROKER_LAB defaults to /var/cache/nix-broker-lab). It appears under that
# name only when it is complete. Several releases are built side by side; two calls for one release take turns.
# NIX_BROKER_LAB_MIRROR, if set, is the Debian mirror to use instead of mmdebstrap's own choice.
# Exit status: 0 every root is there, 77 this machine cannot build one (not root), anything else a failure.
set -euo pipefail

LAB=${NIX_BROKER_LAB:-/var/cache/nix-broker-lab}
LAYOUT=1 # raise it when a root must differ from those already built: older ones are then built anew

PACKAGES=openssh-server,openssh-client,ca-certificates,busybox-static,procps,nix-bin,git,tini,iproute2

say() { printf 'roots: %s\n' "$*"; }

# What this machine itself needs, here and in host.sh, as "program package" pairs.
install_tools() {
  local missing=() program package
  while read -r program package; do
    command -v "$program" >/dev/null || missing+=("$package")
  done <<'PAIRS'
mmdebstrap mmdebstrap
unshare util-linux
setpriv util-linux
pivot_root util-linux
flock util-linux
ip iproute2
PAIRS
  [ ${#missing[@]} -eq 0 ] && return
  say "installing on this machine: ${missing[*]}"
  local install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
  export DEBIAN_FRONTEND=noninteractive
  "${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
}

# Runs on the unpacked root: what Debian's nix-setup-systemd does (build users, state folders), without systemd, and
# the lab's own users.
dress() { # ROOT
  chroot "$1" sh -eu <<'SH'
groupadd --force --system nix-users
groupadd --force --system nixbld
for n in 1 2 3 4 5 6 7 8 9 10; do
  useradd --system --comment "Nix build user $n" --home-dir /var/empty --gid nixbld --groups nixbld \
    --no-user-group --shell /usr/sbin/nologin nixbld$n
done
useradd --create-home --shell /bin/bash --groups nix-users alice
useradd --system --user-group --create-home --home-dir /var/lib/nix-broker --shell /bin/sh --groups nix-users nix-broker
chmod 755 /var/lib/nix-broker
mkdir -p /nix/var/nix/gcroots /nix/var/nix/profiles /etc/nix
install -d -m 770 -g nix-users /nix/var/nix/daemon-socket
install -d -m 1777 /nix/var/nix/gcroots/per-user /nix/var/nix/profiles/per-user
cat > /etc/nix/nix.conf <<'CONF'
experimental-features = nix-command flakes
substituters =
sandbox = false
trusted-users = root
build-users-group = nixbld
CONF
rm -f /etc/resolv.conf /etc/ssh/ssh_host_* /etc/hostname
: > /etc/resolv.conf
rm -rf /usr/share/doc/* /usr/share/man/* /usr/share/locale/* /var/log/*.log /var/log/apt/*
SH
}

is_complete() { [ "$(cat "$LAB/roots/$1/etc/nix-broker-lab" 2>/dev/null)" = "$LAYOUT" ]; }

build() { # RELEASE
  local release=$1 root=$LAB/roots/$1 part log began=$SECONDS
  exec 9>"$LAB/roots/.$release.lock"
  flock -n 9 || { say "$release: another call is building it, waiting"; flock 9; }
  if is_complete "$release"; then say "$release: ready ($root)"; return; fi
  rm -rf "$LAB/roots/.$release.part."*
  part=$LAB/roots/.$release.part.$$ log=$LAB/roots/.$release.log
  say "$release: downloading and unpacking Debian, OpenSSH and Nix (log: $log)"
  mmdebstrap --mode=root --variant=apt --include="$PACKAGES" \
    --hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr \
    --dpkgopt=force-unsafe-io --aptopt='APT::Install-Recommends "false"' \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    "$release" "$part" ${NIX_BROKER_LAB_MIRROR:+"$NIX_BROKER_LAB_MIRROR"} >"$log" 2>&1 9>&- ||
    { tail -n 15 "$log" >&2; rm -rf "$part"; say "$release: FAILED"; return 1; }
  say "$release: adding users and Nix state folders"
  dress "$part" >>"$log" 2>&1 9>&- || { tail -n 15 "$log" >&2; rm -rf "$part"; say "$release: FAILED"; return 1; }
  echo "$LAYOUT" >"$part/etc/nix-broker-lab"
  if [ -e "$root" ]; then mv "$root" "$part.old"; fi
  mv "$part" "$root"
  rm -rf "$part.old"
  say "$release: ready after $((SECONDS - began)) s, $(du -sh "$root" | cut -f1) ($root)"
}

if [ $# -eq 0 ]; then sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
for release in "$@"; do
  case $release in [a-z]*[!a-z]* | [!a-z]* | '') echo "roots: not a Debian release: '$release'" >&2; exit 2 ;; esac
done
missing=0
for release in "$@"; do is_complete "$release" || missing=1; done
if [ $missing = 0 ]; then for release in "$@"; do say "$release: ready ($LAB/roots/$release)"; done; exit; fi
[ "$(id -u)" = 0 ] || { echo "roots: building a root needs to run as root" >&2; exit 77; }

mkdir -p "$LAB/roots"
exec 8>"$LAB/.tools.lock"; flock 8; install_tools 8>&-; exec 8>&-
pids=() status=0
for release in "$@"; do build "$release" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit $status
