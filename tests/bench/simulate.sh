#!/bin/bash
# Compares the broker's decisions with fixed fleets and with first come, first served, on five shapes and on Debian's own
# build dependencies, and prints the comparison as the Markdown of the README.
#
#   simulate.sh [OPTION...]        options for `broker simulate`, such as --foresight learned
#
# The packages are some thousand: what nine large ones need to be built. The index of sources comes from wherever apt of
# this machine gets its packages, into a folder of its own. BROKER is the program (default target/debug/broker), CONFIG
# another configuration, GRAPHS a folder for what was fetched (default target/simulate). Exit status 77: no apt here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
broker=${BROKER:-$here/../../target/debug/broker}
config=${CONFIG:-$here/simulate.toml}
graphs=${GRAPHS:-$here/../../target/simulate}
packages=(firefox-esr libreoffice gimp vlc emacs postgresql-15 nginx qemu blender)
[ -x "$broker" ] || { echo "simulate: no program at $broker (make it: cargo build)" >&2; exit 1; }
mkdir -p "$graphs"
graphs=$(cd "$graphs" && pwd)

fetch_sources() {
  command -v apt-get >/dev/null || { echo "simulate: this machine lacks: apt" >&2; exit 77; }
  local apt=$graphs/apt file
  mkdir -p "$apt/parts" "$apt/lists/partial"
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    case $file in
      *.sources) sed 's/^Types:.*/Types: deb-src/' "$file" >"$apt/parts/${file##*/}" ;;
      *.list) if [ -s "$file" ]; then sed 's/^deb /deb-src /' "$file" >"$apt/parts/${file##*/}"; fi ;;
    esac
  done
  apt-get --quiet=2 -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/parts" \
    -o Dir::State::lists="$apt/lists" update
  # Of the suites the largest index is the release itself; the others are its updates.
  file=$(find "$apt/lists" -maxdepth 1 -name '*_Sources*' -printf '%s %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
  /usr/lib/apt/apt-helper cat-file "$file" >"$graphs/Sources"
}

[ -s "$graphs/Sources" ] || fetch_sources
[ -s "$graphs/debian.json" ] ||
  python3 "$here/debian_graph.py" "$graphs/Sources" "$graphs/debian" "${packages[@]}" >&2

row() { # LABEL ARGUMENT...
  local label=$1
  shift
  "$broker" simulate --config "$config" --fcfs --json "$@" "${options[@]}" | python3 -c '
import json, sys
document = json.load(sys.stdin)
def cell(run):
    minutes, cost, after, unbuilt = round(run["finish"] / 60), run["cost"], run["cost_after"], run["unbuilt"]
    time = f"{minutes // 60} h {minutes % 60:02}" if minutes >= 60 else f"{minutes} min"
    idle = f" + {after:.2f}" if run["kind"] != "fixed" else ""
    return f"{time}, ${cost - after:.2f}{idle}" + (f", {unbuilt} unbuilt" if unbuilt else "")
builds = document["builds"]
print(f"| {sys.argv[1]}, {builds} builds |", " | ".join(map(cell, document["runs"])), "|")
' "$label"
}

options=("$@")
fleets=(1xc7a.8xlarge 4xc6a.4xlarge 1xc7a.16xlarge 1xc8a.8xlarge 1xc8a.16xlarge)
# Of the two systems' graph each fixed fleet has as many machines for Arm, of the same age.
x86=() both=()
for fleet in "${fleets[@]}"; do
  arm=${fleet/c6a/c7g} arm=${arm/c7a/c7g} arm=${arm/c8a/c8g}
  x86+=(--fixed "$fleet") both+=(--fixed "$fleet+$arm")
done
printf '| graph | broker | first come, first served |%s\n' "$(printf ' %s |' "${fleets[@]/x/ }")"
printf '|---|---|---|%s\n' "$(printf -- '---|%.0s' "${fleets[@]}")"
for shape in wide deep diamond long-tail; do row "$shape" --shape "$shape" "${x86[@]}"; done
row "two systems" --shape two-systems "${both[@]}"
row Debian --graph "$graphs/debian.json" --durations "$graphs/debian.times" "${x86[@]}"
