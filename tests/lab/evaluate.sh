#!/bin/bash
# Evaluates nix/tests of this repository with a lab root's Nix, and prints what an attribute of it comes to.
#
#   evaluate.sh [--raw] ATTRIBUTE [RELEASE]      RELEASE is a root that roots.sh made (default forky)
#
# With NIXPKGS, a tree of nixpkgs, it is the real NixOS that is evaluated, else the stand-in of nix/tests/stand-in; with
# NIXPKGS_LIB, nixpkgs' library alone, that with the real module system.
# Nothing is built and no store is written. Exit status 77: see host.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
form=--json
[ "${1-}" != --raw ] || { form=--raw; shift; }
[ $# -ge 1 ] || { sed -n 4p "$0" >&2; exit 2; }
root=${NIX_BROKER_LAB:-/var/cache/nix-broker-lab}/roots/${2:-forky}
[ "$(id -u)" = 0 ] || { echo "evaluate: this machine lacks: root (uid 0)" >&2; exit 77; }
[ -x "$root/usr/bin/nix" ] || { echo "evaluate: no root at $root (make it: tests/lab/roots.sh)" >&2; exit 1; }

# Mounts of this process alone: the repository and the tree are seen by the root's Nix, and the root is not written to.
exec unshare --mount -- bash -euc '
  root=$1 form=$2 attribute=$3
  mount -t tmpfs tmpfs "$root/mnt"
  mkdir "$root/mnt/repo" "$root/mnt/nixpkgs" "$root/mnt/home"
  mount --bind -o ro . "$root/mnt/repo"
  mount -t proc proc "$root/proc"
  inside=
  library=
  if [ -n "${NIXPKGS_LIB-}" ]; then
    mkdir "$root/mnt/lib"
    mount --bind -o ro "$NIXPKGS_LIB" "$root/mnt/lib"
    library=/mnt/lib
  fi
  if [ -n "${NIXPKGS-}" ]; then mount --bind -o ro "$NIXPKGS" "$root/mnt/nixpkgs"; inside=/mnt/nixpkgs; fi
  exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/mnt/home XDG_CONFIG_DIRS=/mnt/home NIX_CONF_DIR=/mnt/home \
    NIXPKGS="$inside" NIXPKGS_LIB="$library" nix --extra-experimental-features "nix-command read-only-local-store" --store dummy:// \
    eval --read-only --impure "$form" --file /mnt/repo/nix/tests "$attribute"
' - "$root" "$form" "$1"
