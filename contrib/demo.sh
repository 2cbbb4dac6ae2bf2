#!/bin/sh
# `nix run .#demo`: a flake of 121 derivations, built by a broker that lives as long as the command, on two builders that
# are processes of this machine. Nothing has to be set up, and nothing is left but what was built, in the Nix store.
#
#   demo.sh FLAKE BUSYBOX      the flake's file (tests/demo/flake.nix), a static busybox
#
# For root and for `trusted-users`: the nix-daemon takes a hook from nobody else.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/flake/bin"
cp "$1" "$work/flake/flake.nix"
cp "$2" "$work/flake/bin/busybox"
cat >"$work/config.toml" <<'CONFIG'
[[pool]]
name = "demo"
slots = 16
max-builders = 2

[pool.local]
CONFIG
# Nothing is to be built by this machine's own Nix, so that everything that is built went to the pool.
NIX_CONFIG="extra-experimental-features = nix-command flakes
max-jobs = 0
${NIX_CONFIG-}"
export NIX_CONFIG
broker run --config "$work/config.toml" -- sh -c '
  nix build --no-link --print-out-paths "path:$1/flake"
  broker status
' - "$work"
