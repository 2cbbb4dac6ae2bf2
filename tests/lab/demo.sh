#!/bin/bash
# `make demo`: the main job on this machine, narrated. Owns the story; the machine it plays on is made by host.sh, so
# that nothing of this machine's own Nix (if it has one) is touched, and nothing is left behind.
set -euo pipefail
cd "$(dirname "$0")/../.."
LAB=tests/lab
HOST=demo-$$
RELEASE=${RELEASE:-forky}

bold() { if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n== %s\n' "$*"; fi; }
say() { printf '%s\n' "$*" | fold -s -w 100; }
shell() { printf '  %s $ %s\n' "$1" "$2"; }
in_host() { "$LAB/host.sh" in "$HOST" "$@"; }
indent() { sed -u 's/^/    /'; }
status() { shell root "broker status"; in_host broker status | indent; }
cleanup() { "$LAB/host.sh" down "$HOST" 2>/dev/null || true; }
trap cleanup EXIT

[ "$(id -u)" = 0 ] || { echo "make demo needs root: it makes a test host out of namespaces" >&2; exit 1; }

bold "Getting ready (only the first time takes minutes)"
"$LAB/roots.sh" "$RELEASE"
# EC2 is not part of it, and compiling its client takes longer than all the rest.
cargo build --locked --quiet --bins --no-default-features
target=${CARGO_TARGET_DIR:-target}/debug

"$LAB/host.sh" up "$HOST" "$RELEASE"
"$LAB/host.sh" put "$HOST" "$target/broker" /usr/local/bin/broker
"$LAB/host.sh" put "$HOST" "$target/broker-hook" /usr/local/bin/broker-hook
in_host sh -c 'mkdir -p /run/nix-broker && chown nix-broker /run/nix-broker
  cat > /etc/nix-broker.toml && echo "build-hook = /usr/local/bin/broker-hook" >> /etc/nix/nix.conf && echo "max-jobs = 0" >> /etc/nix/nix.conf' <<'C'
[[pool]]
name = "demo"
slots = 16
max-builders = 2
idle-timeout = "5s"

[pool.local]
C
in_host --user alice sh -c 'mkdir -p distribution/bin && cp /bin/busybox distribution/bin/ && cat > distribution/flake.nix' <tests/demo/flake.nix

bold "A machine with Nix $(in_host nix --version | sed 's/.* //'), and three things of ours"
say "A short configuration, one line in nix.conf, and a broker that runs as an ordinary user:"
shell root "cat /etc/nix-broker.toml"; in_host cat /etc/nix-broker.toml | indent
shell root "grep build-hook /etc/nix/nix.conf"; in_host grep build-hook /etc/nix/nix.conf | indent
in_host --user nix-broker sh -c 'exec broker serve --config /etc/nix-broker.toml >/var/lib/nix-broker/log 2>&1' &
BROKER=$!
for _ in $(seq 200); do in_host broker status >/dev/null 2>&1 && break; sleep 0.05; done
"$LAB/host.sh" daemon "$HOST" "NIX_CONFIG=build-hook = /usr/local/bin/broker-hook"
say "No builder is running yet. Builders cost money; the broker has none until somebody needs one."
status

bold "Alice types: nix build"
say "No wrapper, no flag. 121 derivations; 108 of them take a second each, and this machine itself may build none (max-jobs = 0)."
shell alice "nix build ./distribution"
began=$(date +%s.%N)
in_host --user alice sh -c 'cd distribution && exec nix build --print-build-logs --no-link --print-out-paths "path:$PWD" >../result.path 2>../build.log' &
BUILD=$!
shown=0
while kill -0 $BUILD 2>/dev/null; do
  running=$(in_host broker status --json 2>/dev/null | grep -c '"phase": *"building"' || true)
  if [ $shown -eq 0 ] && [ "$running" -ge 4 ]; then
    say "A moment later:"; status; shown=1
  fi
  sleep 0.3
done
wait $BUILD || { echo "the build failed:"; in_host --user alice tail -n 30 build.log; in_host tail -n 30 /var/lib/nix-broker/log; exit 1; }
took=$(echo "$(date +%s.%N) - $began" | bc)
result=$(in_host --user alice cat result.path)
bold "Done in $(printf %.1f "$took") seconds"
say "That was 108 seconds of work. What Alice saw of it, besides the builds' own logs:"
in_host --user alice sh -c "grep -m 3 -E 'launching|boots|ready after' build.log" | indent || true
say "The result is in Alice's own store, valid, with the log of every step:"
shell alice "wc -l $result"; in_host wc -l "$result" | indent
drv=$(in_host nix-store --query --requisites "$(in_host nix-store --query --deriver "$result")" | grep 'object-3-4.drv$')
shell alice "nix log $drv"; in_host --user alice nix log "$drv" 2>/dev/null | indent
shell root "nix-store --verify --check-contents"; in_host nix-store --verify --check-contents 2>&1 | indent

bold "Five idle seconds later"
for _ in $(seq 300); do
  in_host broker status --json | grep -q '"builders": *\[\]' && break
  sleep 0.1
done
say "The builders have ended by themselves. Nothing of them is left: no process, no file."
status
shell root "ls /var/lib/nix-broker/local"; in_host sh -c 'ls -A /var/lib/nix-broker/local 2>/dev/null || true' | indent

bold "And when the broker stops"
in_host pkill -x -TERM broker
wait $BROKER && say "it drains, ends its builders, and exits with status 0. Nix then builds locally, with one warning."
