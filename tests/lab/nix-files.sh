#!/bin/bash
# Checks every .nix file of the repository with a real Nix, without a network: each parses, flake.lock is the lock of
# flake.nix, what nix/tests expects of the modules and of the flake's outputs holds, and systemd finds no fault with the
# units and their hardening.
#
#   nix-files.sh [RELEASE]       RELEASE is a root that roots.sh made (default forky)
#
# nixpkgs is stood in for by nix/tests/stand-in. With NIXPKGS_LIB, nixpkgs' library (`lib` of nixpkgs, or of
# nix-community/nixpkgs.lib), all of it runs once more with the real module system, and with NIXPKGS, a tree of nixpkgs,
# against the real NixOS; it says what was not run. Exit status 77: see host.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=${1:-forky}
evaluate=tests/lab/evaluate.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
die() { printf 'nix-files: %s\n' "$*" >&2; exit 1; }

# Every file, those of no attribute too.
count=$(git ls-files '*.nix' 2>/dev/null | wc -l)
[ "$count" -gt 15 ] || die "only $count files found"
bad=$($evaluate --raw syntax "$release") || die "evaluation failed"
[ -z "$bad" ] || die "does not parse: $bad"

# The most that a unit may be exposed to, in tenths, as systemd counts; lower it when it gets better.
declare -A LIMIT=([hosts]=15 [local]=55)
check() { # WITH-WHAT
  local wrong unit
  wrong=$($evaluate wrong "$release") || die "evaluation failed ($1)"
  [ "$wrong" = '[]' ] || die "not as it should be ($1): $wrong"
  for unit in hosts local; do
    mkdir -p "$work/$unit"
    $evaluate --raw "units.$unit" "$release" >"$work/$unit/nix-broker.service"
    systemd-analyze security --offline=yes --no-pager --threshold="${LIMIT[$unit]}" \
      "$work/$unit/nix-broker.service" >"$work/$unit/report" 2>&1 ||
      { cat "$work/$unit/report"; die "the unit for a pool of kind '$unit' is more exposed than ${LIMIT[$unit]}"; }
    echo "nix-files: $1: $(grep -o 'Overall exposure.*[A-Z]' "$work/$unit/report")"
  done
}

NIXPKGS='' NIXPKGS_LIB='' check "stand-in"
if [ -n "${NIXPKGS_LIB:-}" ]; then
  NIXPKGS='' check "stand-in with the library of nixpkgs $(cat "$NIXPKGS_LIB/.version")"
else
  echo "nix-files: NOT RUN: 1, the same with nixpkgs' own library, because NIXPKGS_LIB names none"
fi
if [ -z "${NIXPKGS:-}" ]; then
  echo "nix-files: $count files parse, flake.lock fits, modules and outputs are as expected of the stand-in for nixpkgs"
  echo "nix-files: NOT RUN: 1, the same with the real NixOS, because NIXPKGS names no tree of nixpkgs"
  exit 0
fi
NIXPKGS_LIB='' check "nixpkgs $(cat "$NIXPKGS/lib/.version")"
echo "nix-files: $count files parse, flake.lock fits, modules and outputs are as expected of the stand-in and of $NIXPKGS"
