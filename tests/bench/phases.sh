#!/bin/bash
# Where our time goes: from the broker's debug log (`TRACE=1 make bench` keeps it), how long the builds were in each
# phase. Owns the reading of that log and nothing else.
#
#   phases.sh LOG...
set -euo pipefail
[ $# -gt 0 ] || { sed -n '5s/^# *//p' "$0" >&2; exit 2; }
for log in "$@"; do
  echo "$log"
  awk '
    function seconds(stamp) { return substr(stamp, 12, 2) * 3600 + substr(stamp, 15, 2) * 60 + substr(stamp, 18) }
    function at(phase) { if (!((build, phase) in time)) { time[build, phase] = seconds($1); seen[build] = 1 } }
    !/ apply event=/ { next }
    match($0, /BuildId\([0-9]+\)|#[0-9]+/) { build = substr($0, RSTART, RLENGTH) }
    / event=Accepted / { at(1) }
    / event=InputsKnown/ { at(2) }
    / phase: Uploading/ { at(3) }
    / phase: Building/ { at(4) }
    / phase: Downloading/ { at(5) }
    / event=AttemptEnded / { at(6) }
    / event=ClientGone/ { at(7) }
    END {
      for (build in seen)
        for (phase = 1; phase < 7; phase++)
          if ((build, phase) in time && (build, phase + 1) in time)
            printf "%d %.3f %.3f\n", phase, time[build, phase + 1] - time[build, phase], time[build, phase]
    }' "$log" | sort -n -k1,1 -k2,2 | awk '
    BEGIN {
      split("accepted, Nix sends inputs|queued|upload: temp roots, question, transfer|build: a daemon, options, build|download: path info, archive|import, until the hook ends", title, "|")
      printf "  %-40s %6s %9s %9s %9s\n", "phase", "builds", "median s", "longest s", "sum s"
    }
    function flush() { if (n) printf "  %-40s %6d %9.3f %9.3f %9.3f\n", title[phase], n, v[int((n + 1) / 2)], v[n], sum; n = sum = 0 }
    $1 != phase { flush(); phase = $1 }
    { v[++n] = $2; sum += $2 }
    END { flush() }'
done
