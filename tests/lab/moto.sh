#!/bin/bash
# Owns the EC2 that the tests launch on: moto, a server that speaks EC2's API over HTTP, in a Python environment of its own.
#
#   moto.sh        makes $NIX_BROKER_LAB/moto (default /var/cache/nix-broker-lab/moto) unless it is there; prints its python
#
# It appears under that name only when it is complete. Two calls take turns. What is installed is pinned here.
set -euo pipefail

LAB=${NIX_BROKER_LAB:-/var/cache/nix-broker-lab}
PACKAGES=('moto[server,ec2]==5.2.5')

say() { printf 'moto: %s\n' "$*" >&2; }

is_complete() { [ "$(cat "$LAB/moto/nix-broker-lab" 2>/dev/null)" = "${PACKAGES[*]}" ]; }

# Debian's python3 comes without the part that makes environments.
install_python() {
  ! python3 -c 'import venv, ensurepip' 2>/dev/null || return 0
  [ "$(id -u)" = 0 ] || { say "needs root to install: python3-venv"; exit 1; }
  say "installing on this machine: python3-venv"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends python3-venv >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null; }
}

mkdir -p "$LAB"
exec 9>"$LAB/.moto.lock"
flock 9
if ! is_complete; then
  install_python
  say "installing ${PACKAGES[*]} (log: $LAB/.moto.log)"
  rm -rf "$LAB"/.moto.part.*
  part=$LAB/.moto.part.$$
  python3 -m venv "$part"
  "$part/bin/python" -m pip install --disable-pip-version-check "${PACKAGES[@]}" >"$LAB/.moto.log" 2>&1 ||
    { tail -n 15 "$LAB/.moto.log" >&2; rm -rf "$part"; exit 1; }
  echo "${PACKAGES[*]}" >"$part/nix-broker-lab"
  rm -rf "$LAB/moto"
  mv "$part" "$LAB/moto" # found by where its python is, so it may move
fi
echo "$LAB/moto/bin/python"
