#!/bin/bash
# Checks licences, bans and sources of every dependency with cargo-deny, which it builds once if it is missing. The
# advisories need a database from the network: where it cannot be had, that is said, and nothing is claimed.
set -euo pipefail
cd "$(dirname "$0")/../.."
VERSION=0.20.2
if ! cargo deny --version 2>/dev/null | grep -qF "$VERSION"; then
  echo "cargo-deny: building $VERSION (once)"
  cargo install --quiet --locked --debug --version "$VERSION" cargo-deny
fi
cargo deny --log-level warn --config nix/deny.toml check licenses bans sources
if ! advisories=$(cargo deny --config nix/deny.toml check advisories 2>&1); then
  if grep -q 'failed to fetch advisory database' <<<"$advisories"; then
    echo "cargo-deny: advisories NOT checked: their database cannot be reached from here"
  else
    printf '%s\n' "$advisories"
    exit 1
  fi
fi
