#!/bin/bash
# `make bench`: what the same work takes with stock `nix __build-remote` and with nix-broker, side by side in one run on
# this machine: a client and two builders of 16 slots (isolated hosts of the lab), joined by a link of chosen delay and
# rate. Owns the measuring; the hosts are tests/lab/host.sh's, the link is link.c, the work is work.nix.
#
#   BENCH="wide chain bulk shared"   what to measure:
#                                      wide    independent small builds           (WIDE=100)
#                                      chain   small builds one after the other   (CHAIN=10)
#                                      bulk    a build with MIB in and MIB out    (MIB=256)
#                                      text    the same with content that can be packed to less than half
#                                      fair    the chain alone, beside an upload of MIB and beside a download of MIB
#                                      many    small builds, far more than slots (MANY=1000); ours are looked at meanwhile:
#                                              memory of hooks and broker, time of a verdict (PROBES=800 questions)
#                                      idle    nothing for 30 seconds: processor and memory of our broker
#                                      shared  builds on one builder with the same input of MIB   (SHARED=32)
#   DELAYS="0 40 100" RATE=1000      round trips in milliseconds, at this rate in Mbit/s; or instead of the two
#   LINKS="0:1000 40:1000 ..."       pairs of both (default: the three delays at 1000, and 40:100); many and idle are
#                                    only measured on the link of 40 ms and 1 Gbit/s
#   SIDES="stock ours"               who takes part
#   ROUNDS=1                         how often; the table shows medians
#   ZSTD=1                           builders have this machine's zstd, if it has one; empty: they have none
#   TRACE=1                          keep the broker's debug log of every measurement, and say where the time goes (costs some itself)
#   PROFILE=release                  which build of ours
#   RELEASE=forky                    the Debian release whose Nix is used on all hosts
#
# Timed is `nix-store --realise` of an ordinary user through nix-daemon: evaluation is over, and local builds are off.
# Stock's machines are in nix.conf; our builders are up, with one idle connection each. Everything built or sent is new
# each time. After each measurement the outputs are verified, and the builders' own logs tell how many builds each did.
# Figures go to target/bench/DATE.json. Nothing here passes or fails by a time; a build that fails, or a wrong count, does.
set -euo pipefail
cd "$(dirname "$0")/../.."

BENCH=${BENCH:-wide chain bulk shared many idle}
if [ -n "${DELAYS:-}" ]; then LINKS=$(for delay in $DELAYS; do printf '%s:%s ' "$delay" "${RATE:-1000}"; done); fi
LINKS=${LINKS:-0:${RATE:-1000} 40:${RATE:-1000} 100:${RATE:-1000} 40:100}
SIDES=${SIDES:-stock ours} ROUNDS=${ROUNDS:-1} ZSTD=${ZSTD-1} TRACE=${TRACE:-} RELEASE=${RELEASE:-forky} PROFILE=${PROFILE:-release}
WIDE=${WIDE:-100} CHAIN=${CHAIN:-10} MIB=${MIB:-256} SHARED=${SHARED:-32} MANY=${MANY:-1000} PROBES=${PROBES:-800}

HOST=tests/lab/host.sh
ME=bench$$
CLIENT=$ME-client BUILDERS=("$ME-builder1" "$ME-builder2")
NET=10.99.0 # host N has address NET.N; nothing of this machine's own network is touched
TARGET=${CARGO_TARGET_DIR:-target}
STARTED=$(date -u +%Y-%m-%dT%H:%M:%SZ)
OUT=$TARGET/bench/${STARTED//:/}
WORK=$(mktemp -d)
BROKER=''

say() { printf '%s\n' "$*" >&2; }
die() { say "bench: $*"; exit 1; }
in_client() { "$HOST" in "$CLIENT" "$@"; }
cleanup() {
  # Bash takes the variable away when the link has ended.
  [ -z "${LINK_PID:-}" ] || kill "$LINK_PID" 2>/dev/null || true
  [ -n "${KEEP:-}" ] || "$HOST" down "$CLIENT" "${BUILDERS[@]}" || true
  rm -rf "$WORK"
}
trap cleanup EXIT
for pair in $LINKS; do
  [[ $pair =~ ^[0-9]+:[1-9][0-9]*$ ]] || die "no link: \`$pair\`; a round trip in milliseconds and a rate in Mbit/s, as 40:1000"
done

link() { # COMMAND...: sets ANSWER
  printf '%s\n' "$*" >&"${LINK[1]}"
  IFS= read -r -t 30 ANSWER <&"${LINK[0]}" || die "the link does not answer"
}

# --- the machines

start_hosts() {
  local number=1 name pid pids=() keys
  for name in "$CLIENT" "${BUILDERS[@]}"; do
    "$HOST" up "$name" "$RELEASE"
    "$HOST" put "$name" tests/bench/work.nix /t/work.nix
    pids+=("$("$HOST" list | awk -v name="$name" '$1 == name { print $3 }')")
  done
  ${CC:-cc} -O2 -Wall -o "$WORK/link" tests/bench/link.c
  coproc LINK { exec "$WORK/link" "${pids[@]}"; }
  IFS= read -r -t 30 ANSWER <&"${LINK[0]}" || die "the link did not start"
  for pid in "${pids[@]}"; do
    # A large MTU, so that a link of 1 Gbit/s costs this machine little.
    nsenter --target "$pid" --net ip address add "$NET.$number/24" dev link0
    nsenter --target "$pid" --net ip link set link0 mtu 9000 txqueuelen 10000 up
    number=$((number + 1))
  done

  "$HOST" put "$CLIENT" "$TARGET/$PROFILE/broker" /usr/local/bin/broker
  "$HOST" put "$CLIENT" "$TARGET/$PROFILE/broker-hook" /usr/local/bin/broker-hook
  in_client sh -euc '
    install -d -m 700 /root/.ssh
    ssh-keygen -q -t ed25519 -N "" -f /root/.ssh/id_ed25519
    install -d -o nix-broker /run/nix-broker
    setpriv --reuid nix-broker --regid nix-broker --clear-groups ssh-keygen -q -t ed25519 -N "" -f /var/lib/nix-broker/id_ed25519
    head -c "$1" /dev/urandom >/t/blob
    # Programs and their symbols: about a third of it is left when it is packed.
    for _ in $(seq 100); do cat /usr/lib/x86_64-linux-gnu/*.so.*; done 2>/dev/null | head -c "$1" >/t/text || true
    chmod 755 /t' - $((MIB << 20))
  keys=$(in_client cat /root/.ssh/id_ed25519.pub /var/lib/nix-broker/id_ed25519.pub)
  number=2
  for name in "${BUILDERS[@]}"; do
    # As it comes, but for MaxStartups: with its 10 connections at a time that have not logged in, stock's hooks fail.
    # Build users as many as Nix's installer and NixOS make: a build that finds none free looks again after 5 seconds.
    "$HOST" in "$name" sh -euc '
      for n in $(seq 11 32); do useradd --system --no-create-home --home-dir /var/empty --gid nixbld --groups nixbld --no-user-group nixbld$n; done
      install -d -m 700 /root/.ssh; printf "%s\n" "$1" >/root/.ssh/authorized_keys; ssh-keygen -q -A
      setsid /usr/sbin/sshd -D -e -o MaxStartups=1000 </dev/null >/var/log/sshd.log 2>&1 &' - "$keys"
    if [ -n "$ZSTD" ] && command -v zstd >/dev/null; then "$HOST" put "$name" "$(command -v zstd)" /usr/bin/zstd; fi
    "$HOST" daemon "$name"
    HOST_KEYS[$number]=$("$HOST" in "$name" cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)
    printf '%s %s\n' "$NET.$number" "${HOST_KEYS[$number]}"
    number=$((number + 1))
  done >"$WORK/known_hosts"
  "$HOST" put "$CLIENT" "$WORK/known_hosts" /root/.ssh/known_hosts
  # The loop ran in this shell, so the keys are set; each builder must answer before anything is measured.
  for number in 2 3; do
    for _ in $(seq 100); do in_client ssh -o BatchMode=yes "root@$NET.$number" true 2>"$WORK/ssh" && continue 2; sleep 0.1; done
    cat "$WORK/ssh" >&2; die "the sshd of builder $((number - 1)) does not answer"
  done
}

# --- the two sides

# Writes the setting into the client's nix.conf, and restarts its daemon.
configure_nix() { # LINE
  in_client sh -euc 'sed -i "/^# bench/,\$d" /etc/nix/nix.conf; printf "# bench\nmax-jobs = 0\n%s\n" "$1" >>/etc/nix/nix.conf' - "$1"
  "$HOST" daemon "$CLIENT"
}

prepare_stock() { # HOW MANY BUILDERS
  local number machines=()
  for ((number = 2; number < 2 + $1; number++)); do machines+=("ssh-ng://root@$NET.$number x86_64-linux - 16 1 ;"); done
  configure_nix "builders = ${machines[*]}"
}

prepare_ours() { # HOW MANY BUILDERS
  local number level=nix_broker=info tries=0
  {
    printf '[[pool]]\nname = "bench"\nslots = 16\nmin-builders = %s\nmax-builders = %s\nidle-timeout = "1h"\n' "$1" "$1"
    for ((number = 2; number < 2 + $1; number++)); do
      printf '[[pool.hosts]]\naddress = "%s"\nuser = "root"\nhost-keys = ["%s"]\n' "$NET.$number" "${HOST_KEYS[$number]}"
    done
  } >"$WORK/config.toml"
  "$HOST" put "$CLIENT" "$WORK/config.toml" /etc/nix-broker/config.toml
  [ -z "$TRACE" ] || level=nix_broker=debug
  "$HOST" in "$CLIENT" --user nix-broker --env "NIX_BROKER_LOG=$level" sh -c 'exec broker serve 2>broker.log' &
  BROKER=$!
  until [ "$(in_client broker status --json 2>/dev/null | grep -o '"state": *"ready"' | wc -l)" = "$1" ]; do
    [ $((tries += 1)) -lt 600 ] && kill -0 $BROKER 2>/dev/null || { in_client cat /var/lib/nix-broker/broker.log >&2; die "our builders do not come up"; }
    sleep 0.1
  done
  configure_nix 'build-hook = /usr/local/bin/broker-hook'
}

finish_stock() { :; }
finish_ours() { # NAME
  if [ -n "$TRACE" ]; then
    in_client cat /var/lib/nix-broker/broker.log >"$OUT.$1.broker.log"
    tests/bench/phases.sh "$OUT.$1.broker.log" >&2
    # Fields 14 and 15 of a process are its own processor time, in hundredths of a second.
    say "  processor time of the broker: $(in_client sh -c 'cut -d" " -f14,15 /proc/$(pgrep -o -x broker)/stat' |
      awk '{ printf "%.2f s + %.2f s in the kernel", $1 / 100, $2 / 100 }')"
  fi
  in_client pkill -TERM -x broker
  wait $BROKER || die "the broker ended with status $?"
}

# --- what our side needs meanwhile

# Proportional set sizes in KiB of all processes of this name on the client, one a line.
memory_of() { # NAME
  in_client sh -c 'cat $(pgrep -x "$1" | sed "s,.*,/proc/&/smaps_rollup,") 2>/dev/null | grep "^Pss:"' - "$1" | awk '{ print $2 }' || true
}

# Sets LOOK to figures as JSON: the most of several looks while builds wait.
look_at_ours() {
  local end=$((SECONDS + 600)) hooks=0 hook=0 broker=0 verdicts=''
  until [ "$hooks" -ge $((MANY / 2)) ] || [ -e "$WORK/over" ] || [ $SECONDS -gt $end ]; do
    hooks=$(in_client sh -c 'pgrep -x broker-hook | wc -l') || hooks=0
    sleep 0.2
  done
  look_at_memory
  verdicts=$(python3 tests/bench/verdicts.py "$WORK/probes" "$HOST" in "$CLIENT" sh -c 'exec 4>/dev/null 5</dev/null; exec broker-hook 3') || verdicts='null null null null null null'
  while [ ! -e "$WORK/over" ]; do
    look_at_memory
    sleep 1
  done
  read -ra verdicts <<<"$verdicts"
  printf '"hooks": %s, "hook_pss_kib": %s, "broker_pss_kib": %s, "verdict_ms_p50": %s, "verdict_ms_p99": %s, "verdict_ms_longest": %s,
    "no_broker_ms_p50": %s, "no_broker_ms_p99": %s, "no_broker_ms_longest": %s' \
    "$hooks" "$hook" "$broker" "${verdicts[@]}" >"$WORK/look"
}

# Raises hooks, hook and broker of look_at_ours to what is seen now. Few hooks share less of their program, so they say little.
look_at_memory() {
  local now count median
  read -r count median <<<"$(memory_of broker-hook | sort -n | awk '{ v[NR] = $1 } END { print NR, v[int((NR + 1) / 2)] + 0 }')"
  [ "$count" -lt "$hooks" ] || hooks=$count
  [ "$count" -lt 100 ] || [ "$median" -lt "$hook" ] || hook=$median
  now=$(memory_of broker | sort -n | tail -1)
  [ "${now:-0}" -lt "$broker" ] || broker=$now
}

# Our broker with nothing to do, its builders up.
measure_idle() {
  local before after pss
  prepare_ours 2 >&2
  sleep 5
  before=$(in_client sh -c 'cut -d" " -f14,15 /proc/$(pgrep -o -x broker)/stat')
  sleep 30
  after=$(in_client sh -c 'cut -d" " -f14,15 /proc/$(pgrep -o -x broker)/stat')
  pss=$(memory_of broker | tail -1)
  finish_ours idle >&2
  awk -v a="$before" -v b="$after" -v pss="$pss" 'BEGIN { split(a, x, " "); split(b, y, " ")
    printf "\"idle_processor_percent\": %.3f, \"idle_broker_pss_kib\": %d", (y[1] + y[2] - x[1] - x[2]) / 30, pss }'
}

# --- one measurement

# How many builds of this name a builder did: it keeps a log of each, and nobody sends logs.
builds_on() { # HOST NAME
  "$HOST" in "$1" sh -c 'find /nix/var/log/nix/drvs -name "*-$1.drv*" 2>/dev/null | wc -l' - "$2"
}

# Prints the derivations of an attribute of work.nix.
instantiate() { # ATTRIBUTE NONCE COUNT [BLOB]
  in_client --user alice nix-instantiate /t/work.nix -A "$1" --argstr nonce "$2" --argstr n "$3" --arg blob "${4:-null}" 2>"$WORK/instantiate" ||
    { cat "$WORK/instantiate" >&2; die "\`$1\` of the work does not evaluate"; }
}

# Sets SECONDS_TAKEN, and SENT RECEIVED CONNECTIONS DROPPED TURNS.
measure() { # SIDE WORK COUNT BUILDERS NAME
  local side=$1 work=$2 count=$3 builders=$4 name=$5 nonce drvs rc began ended here there want host look
  nonce=$name-$RANDOM$RANDOM
  "prepare_$side" "$builders"
  drvs=$(instantiate "$work" "$nonce" "$count" "$(blob_of "$work")")
  if [ "$side $work" = 'ours many' ]; then
    instantiate wide "probe-$nonce" "$PROBES" >"$WORK/probes"
  fi
  # What TCP remembers of a host it met over another link would help or hurt whoever comes next.
  for host in "$CLIENT" "${BUILDERS[@]}"; do "$HOST" in "$host" ip tcp_metrics flush; done
  link zero
  rm -f "$WORK/over" "$WORK/look"
  if [ "$side $work" = 'ours many' ]; then look_at_ours & look=$!; fi
  # shellcheck disable=SC2086 # a list of paths
  read -r rc began ended <<<"$(in_client --user alice bash -c '
    began=$EPOCHREALTIME; nix-store --realise "$@" >outputs 2>errors </dev/null; rc=$?; echo $rc $began $EPOCHREALTIME' - $drvs)"
  link count
  touch "$WORK/over"
  if [ "$side $work" = 'ours many' ]; then wait $look; say "  $(cat "$WORK/look")"; fi
  read -r SENT RECEIVED CONNECTIONS DROPPED TURNS <<<"$ANSWER"
  SECONDS_TAKEN=$(awk -v a="$began" -v b="$ended" 'BEGIN { printf "%.3f", b - a }')
  if [ "$rc" != 0 ]; then
    in_client --user alice tail -n 20 errors >&2
    [ "$side" = stock ] || in_client tail -n 20 /var/lib/nix-broker/broker.log >&2
    die "$side fails at $work"
  fi
  "finish_$side" "$name"

  # Every output is there with the content that the database says; every build was done once, and where it should be.
  in_client sh -euc 'sort -u /home/alice/outputs | xargs nix-store --verify-path' || die "$side: an output of $work is not valid"
  want=$(in_client sh -c 'nix-store --query --requisites "$@" | grep -cE -- "-(wide|many|link|bulk|text|shared)-.*\.drv$"' - $drvs)
  here=$(builds_on "${BUILDERS[0]}" "*-$nonce") there=$(builds_on "${BUILDERS[1]}" "*-$nonce")
  [ "$want" = "$count" ] && [ $((here + there)) = "$count" ] || die "$side: $count builds of $work wanted, $here + $there done"
  [ "$builders" = 2 ] || [ "$there" = 0 ] || die "$side: $there builds of $work went to a builder that it does not know"
  PLACES="$here+$there"
  # A gigabyte for each measurement of this kind would soon fill the disk.
  for host in "$CLIENT" "${BUILDERS[@]}"; do
    "$HOST" in "$host" sh -c 'ls -d /nix/store/*-"$1"* | grep -v "\.lock$" | xargs -r nix-store --delete --ignore-liveness' - "$nonce" >"$WORK/delete" 2>&1 || true
  done
}

blob_of() { if [ "$1" = text ]; then echo /t/text; else echo /t/blob; fi; } # WORK

# What has gone over the link since it was zeroed, in bytes: sets SENT RECEIVED.
look_at_link() { link count; read -r SENT RECEIVED _ <<<"$ANSWER"; }

# Sets TAKEN to the seconds of a new chain of CHAIN builds.
chain() { # NONCE
  local drvs rc began ended
  drvs=$(instantiate chain "$1" "$CHAIN")
  # shellcheck disable=SC2086 # a list of paths
  read -r rc began ended <<<"$(in_client --user alice bash -c '
    began=$EPOCHREALTIME; nix-store --realise "$@" >>outputs 2>errors </dev/null; rc=$?; echo $rc $began $EPOCHREALTIME' - $drvs)"
  [ "$rc" = 0 ] || { in_client --user alice tail -n 20 errors >&2; die "a chain fails"; }
  TAKEN=$(awk -v a="$began" -v b="$ended" 'BEGIN { printf "%.3f", b - a }')
}

# A chain alone, then beside a huge upload, then beside a huge download, all to and from one builder. Sets FAIR, as JSON.
measure_fair() { # SIDE DELAY_MS
  local side=$1 nonce=fair-$RANDOM$RANDOM drvs alone busy which=SENT bulk host
  "prepare_$side" 1
  in_client --user alice rm -f outputs
  chain "$nonce-warm"
  chain "$nonce-alone"
  alone=$TAKEN
  drvs=$(instantiate bulk "$nonce" 1 /t/blob)
  link zero
  # shellcheck disable=SC2086 # a list of paths
  in_client --user alice sh -c 'exec nix-store --realise "$@" >>outputs 2>bulk-errors </dev/null' - $drvs &
  bulk=$!
  FAIR="\"alone\": $alone"
  for busy in upload download; do
    until look_at_link; [ "${!which}" -gt $((MIB << 18)) ]; do
      kill -0 $bulk 2>/dev/null || { in_client --user alice tail bulk-errors >&2; die "the $busy is over before it was seen"; }
      sleep 0.02
    done
    chain "$nonce-$busy"
    look_at_link
    [ "${!which}" -lt $((MIB << 20)) ] || die "the $busy was over before the chain beside it: a larger MIB is needed"
    FAIR+=", \"beside_$busy\": $TAKEN"
    say "  $side, $2 ms: a chain of $CHAIN takes $alone s alone and $TAKEN s beside an $busy: $(awk -v a="$alone" -v b="$TAKEN" -v n="$CHAIN" -v ms="$2" \
      'BEGIN { printf "%.2f x, %.0f ms a build", b / a, (b - a) * 1000 / n; if (ms > 0) printf " or %.1f round trips", (b - a) * 1000 / n / ms }')"
    which=RECEIVED
  done
  wait $bulk || die "the large build fails"
  in_client sh -euc 'sort -u /home/alice/outputs | xargs nix-store --verify-path' || die "$side: an output of fair is not valid"
  "finish_$side" "fair-$side"
  for host in "$CLIENT" "${BUILDERS[@]}"; do
    "$HOST" in "$host" sh -c 'ls -d /nix/store/*-"$1"* | grep -v "\.lock$" | xargs -r nix-store --delete --ignore-liveness' - "$nonce" >"$WORK/delete" 2>&1 || true
  done
}

shown() { [ -z "$1" ] && echo - || LC_ALL=C printf '%.2f s' "$1"; } # SECONDS
median() { sort -n | awk '{ v[NR] = $1 } END { if (NR) printf "%s", NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

count_of() { case $1 in wide) echo "$WIDE" ;; many) echo "$MANY" ;; idle | fair) echo 0 ;; chain) echo "$CHAIN" ;; bulk | text) echo 1 ;; shared) echo "$SHARED" ;; *) die "no such work: $1" ;; esac; }
title_of() {
  case $1 in
  wide) echo "$WIDE small builds" ;;
  chain) echo "chain of $CHAIN" ;;
  many) echo "$MANY builds at once" ;;
  bulk) echo "$MIB MiB in, $MIB MiB out" ;;
  text) echo "$MIB MiB in, $MIB MiB out, text" ;;
  shared) echo "$SHARED builds, one $MIB MiB input" ;;
  esac
}

# --- the run

[ "$(id -u)" = 0 ] || die "needs root: it makes test hosts out of namespaces"
[ -c /dev/net/tun ] || die "needs /dev/net/tun"
for work in $BENCH; do count_of "$work" >/dev/null; done
mkdir -p "$TARGET/bench"
declare -A HOST_KEYS
start_hosts
{
  printf '{\n  "date": "%s",\n  "broker": "%s",\n  "commit": "%s",\n  "nix": "%s",\n' "$STARTED" "$(in_client broker --version)" \
    "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$(in_client nix --version)"
  printf '  "ssh": "%s",\n  "tcp": "%s",\n  "kernel": "%s",\n  "processors": %s,\n  "load": "%s",\n' "$(in_client ssh -V 2>&1)" \
    "$(in_client cat /proc/sys/net/ipv4/tcp_congestion_control)" "$(uname -r)" "$(nproc)" "$(cut -d' ' -f1-3 /proc/loadavg)"
  printf '  "parameters": {"wide": %s, "chain": %s, "mib": %s, "shared": %s, "many": %s, "rounds": %s, "trace": %s, "zstd": %s},\n  "measurements": [' \
    "$WIDE" "$CHAIN" "$MIB" "$SHARED" "$MANY" "$ROUNDS" "$([ -n "$TRACE" ] && echo true || echo false)" \
    "$([ -n "$ZSTD" ] && command -v zstd >/dev/null && echo true || echo false)"
} >"$OUT.json"
say "$(in_client nix --version), $(in_client broker --version), $(nproc) processors, load $(cut -d' ' -f1-3 /proc/loadavg)"

printf '\n%-32s %-16s %9s %9s %7s   %-19s %-13s %s\n' "work" "link" "stock" "ours" "ratio" "MiB up+down" "connections" "turns a build"
comma=''
for pair in $LINKS; do
  delay=${pair%:*} rate=${pair#*:}
  link set "$(awk -v ms="$delay" 'BEGIN { print int(ms * 500) }')" "$rate"
  for work in $BENCH; do
    case "$work $pair" in
    *' 40:1000') ;;
    many\ * | idle\ *) continue ;;
    esac
    if [ "$work" = idle ]; then
      idle=$(measure_idle)
      say "  $idle"
      printf '%s\n    {"work": "idle", "side": "ours", "round_trip_ms": %s, "mbit": %s, "seconds": 30, %s}' "$comma" "$delay" "$rate" "$idle" >>"$OUT.json"
      comma=,
      continue
    fi
    if [ "$work" = fair ]; then
      for side in $SIDES; do
        measure_fair "$side" "$delay"
        printf '%s\n    {"work": "fair", "side": "%s", "round_trip_ms": %s, "mbit": %s, %s}' "$comma" "$side" "$delay" "$rate" "$FAIR" >>"$OUT.json"
        comma=,
      done
      continue
    fi
    builders=2
    [ "$work" != shared ] || builders=1
    declare -A took=() bytes=() opened=() turns=()
    for round in $(seq "$ROUNDS"); do
      for side in $SIDES; do
        say "  $work, $delay ms, $rate Mbit/s: $side ($round of $ROUNDS)"
        measure "$side" "$work" "$(count_of "$work")" "$builders" "$side-$work-$delay-$rate-$round"
        took[$side]+="$SECONDS_TAKEN"$'\n'
        bytes[$side]=$(awk -v a="$SENT" -v b="$RECEIVED" 'BEGIN { printf "%.0f+%.0f", a / 1048576, b / 1048576 }')
        opened[$side]=$CONNECTIONS
        turns[$side]=$(awk -v a="$TURNS" -v b="$(count_of "$work")" 'BEGIN { printf "%.1f", a / b }')
        printf '%s\n    {"work": "%s", "round_trip_ms": %s, "mbit": %s, "side": "%s", "round": %s, "seconds": %s, "bytes_sent": %s, "bytes_received": %s, "connections": %s, "packets_dropped": %s, "turns": %s, "builds_per_builder": "%s"%s}' \
          "$comma" "$work" "$delay" "$rate" "$side" "$round" "$SECONDS_TAKEN" "$SENT" "$RECEIVED" "$CONNECTIONS" "$DROPPED" "$TURNS" "$PLACES" "$(if [ -s "$WORK/look" ]; then printf ', '; cat "$WORK/look"; fi)" >>"$OUT.json"
        comma=,
      done
    done
    stock=$(printf '%s' "${took[stock]:-}" | median) ours=$(printf '%s' "${took[ours]:-}" | median)
    ratio=$(awk -v a="$stock" -v b="$ours" 'BEGIN { if (a && b) printf "%.1f x", a / b; else print "-" }')
    printf '%-32s %-16s %9s %9s %7s   %-19s %-13s %s\n' "$(title_of "$work")" "$delay ms, $rate Mb/s" "$(shown "$stock")" "$(shown "$ours")" "$ratio" \
      "${bytes[stock]:--} | ${bytes[ours]:--}" "${opened[stock]:--} | ${opened[ours]:--}" "${turns[stock]:--} | ${turns[ours]:--}"
  done
done
printf '\n  ]\n}\n' >>"$OUT.json"
printf '\nSeconds: medians of %s. MiB, connections, turns (data sent after data came, waited for or not): stock | ours, of the last round. Raw figures: %s\n' "$ROUNDS" "$OUT.json"
# A build of the chain waits for each of its round trips, so that is what a longer link adds to it.
python3 - "$OUT.json" <<'E'
import json, statistics, sys
run = json.load(open(sys.argv[1]))
for side in "stock", "ours":
    seconds = {}
    for one in run["measurements"]:
        if one["work"] == "chain" and one["side"] == side and one["mbit"] == 1000:
            seconds.setdefault(one["round_trip_ms"], []).append(one["seconds"])
    if len(seconds) > 1:
        short, long = min(seconds), max(seconds)
        added = statistics.median(seconds[long]) - statistics.median(seconds[short])
        count = added * 1000 / (long - short) / run["parameters"]["chain"]
        print(f"Round trips that a build of the chain waits for, {side}: {count:.1f}")
E
if python3 tests/bench/plot.py "$OUT.json" >"$OUT.svg"; then echo "As a picture: $OUT.svg"; fi
