#!/bin/bash
# Installs what the tests need on this machine itself: a real sshd and ssh-keygen for the tests of `ssh` and `provider`,
# zstd, the shells and curl for what an EC2 instance runs, systemd-analyze for the units of nix/, tmux for the full-screen
# view.
set -euo pipefail
missing=()
for pair in sshd:openssh-server ssh-keygen:openssh-client cc:gcc curl:curl dash:dash zstd:zstd \
  systemd-analyze:systemd tmux:tmux; do
  PATH=$PATH:/usr/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing: ${missing[*]}"
[ "$(id -u)" = 0 ] || { echo "needs root to install: ${missing[*]}" >&2; exit 1; }
apt-get update -qq
# Only the program is wanted: no service may start on the developer's machine.
policy=/usr/sbin/policy-rc.d
[ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; trap 'rm -f $policy' EXIT; }
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
