#!/bin/bash
# Checks licences and sources of every dependency with cargo-deny, which it builds once if it is missing. Advisories
# need a database from the network: checked when it can be had, and said when not.
set -euo pipefail
cd "$(dirname "$0")/../.."
VERSION=0.20.2
if ! cargo deny --version 2>/dev/null | grep -qF "$VERSION"; then
  echo "building cargo-deny $VERSION (once)"
  cargo install --quiet --locked --debug --version "$VERSION" cargo-deny
fi
cargo deny --config nix/deny.toml check licenses bans sources 2>&1 || cargo deny check --config nix/deny.toml licenses bans sources
if ! cargo deny check --config nix/deny.toml advisories; then
  echo "licences: the advisory database could not be read or names an advisory (see above)"
  exit "${ADVISORIES_REQUIRED:-0}"
fi
