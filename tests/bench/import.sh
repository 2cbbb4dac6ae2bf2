#!/bin/bash
# What another importer could save: `nix-store --register-validity` for paths that were written by hand, one by one and
# in groups, beside what starting the stock client costs, which imports today. One host, no link, no broker: the import
# of a real build as a whole is in `TRACE=1 BENCH=chain tests/bench/run.sh`.
#
#   RELEASES="bookworm trixie forky"   which Nix
#   PATHS=50                           how many paths
set -euo pipefail
cd "$(dirname "$0")/../.."
HOST=tests/lab/host.sh
ME=import$$
trap '"$HOST" down "$ME"' EXIT

printf '%-10s %-22s %14s %14s %14s %14s\n' release nix 'nix, nothing' 'stock client' 'one by one' "$((${PATHS:=50})) at once"
for release in ${RELEASES:-bookworm trixie forky}; do
  tests/lab/roots.sh "$release" >&2
  "$HOST" up "$ME" "$release"
  "$HOST" daemon "$ME"
  "$HOST" in "$ME" bash -euc '
    digits() { head -c 512 /dev/urandom | tr -dc 0-9a-df-np-sv-z | head -c 32; }
    make() {
      for i in $(seq "$1"); do
        path=/nix/store/$(digits)-thing-$i
        mkdir "$path"; head -c 2000 /dev/urandom >"$path/file"
        printf "%s\n\n0\n" "$path" >"/tmp/$2-$i"
      done
    }
    each() { # COUNT COMMAND...: milliseconds for one
      local count=$1 began=$EPOCHREALTIME; shift
      for i in $(seq "$count"); do "$@" "$i"; done
      awk -v a="$began" -v b="$EPOCHREALTIME" -v n="$count" "BEGIN { printf \"%11.1f ms\", (b - a) * 1000 / n }"
    }
    nothing() { nix-store --version >/dev/null; }
    client() { nix __build-remote 0 </dev/null >/dev/null 2>&1 || true; }
    register() { nix-store --register-validity <"/tmp/one-$1"; }
    group() { cat /tmp/group-* | nix-store --register-validity; }
    nix-store --init
    make "$2" one; make "$2" group
    nothing; client
    printf "%-10s %-22s %s %s %s" "$1" "$(nix --version)" "$(each 20 nothing)" "$(each 20 client)" "$(each "$2" register)"
    printf " %s\n" "$(each 1 group | awk -v n="$2" "{ printf \"%11.1f ms\", \$1 / n }")"
    nix-store --verify --check-contents >/tmp/verify 2>&1 || { cat /tmp/verify; exit 1; }
  ' - "$release" "$PATHS"
  "$HOST" down "$ME"
done
