#!/bin/bash
# Records the graph of graph.nix as `nix derivation show -r` of each lab release writes it: graphs/<Nix version>.json.
#
#   record_graphs.sh RELEASE...      roots that tests/lab/roots.sh made (bookworm, trixie, forky)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
host=$here/../lab/host.sh
[ $# -ge 1 ] || { sed -n 4p "$0" >&2; exit 2; }
for release; do
  name=graphs-$release
  "$host" up "$name" "$release" >/dev/null
  trap '"$host" down "$name"' EXIT
  "$host" put "$name" "$here/graph.nix" /tmp/graph.nix
  version=$("$host" in "$name" -- nix --version | sed 's/.* //')
  "$host" in "$name" -- sh -euc '
    show="derivation show"
    nix derivation --help >/dev/null 2>&1 || show=show-derivation
    nix --extra-experimental-features "nix-command ca-derivations" --store /tmp/store $show -r -f /tmp/graph.nix top
  ' >"$here/graphs/$version.json"
  "$host" down "$name"
  trap - EXIT
done
