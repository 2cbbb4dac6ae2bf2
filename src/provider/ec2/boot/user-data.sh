#!/bin/sh
host_keys=$(cat <<'HOST_KEYS'
SSH_HOST_ED25519_KEY:@HOST_KEY_PRIVATE@
SSH_HOST_ED25519_KEY_PUB:@HOST_KEY_PUBLIC@
HOST_KEYS
)
# Makes this NixOS instance a builder of nix-broker. Runs as root after every boot, also after a stop; every part of it
# may run again. NixOS takes the host key out of the lines above by itself, before it starts sshd: with sed, and only
# when no pipe character comes before them. The names that it looks for may stand nowhere else.
#
# NIX_BROKER_ROOT stands before every path, for tests.
root=${NIX_BROKER_ROOT-}
run=$root/run/nix-broker
umask 022
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p "$run"

# The dead-man comes first, before anything that can fail: from here on this machine ends by itself.
cat >"$run/dead-man.sh" <<'DEAD_MAN'
@DEAD_MAN@
DEAD_MAN
cat >"$run/limits" <<'LIMITS'
lease=@LEASE@
lease-busy=@LEASE_BUSY@
idle=@IDLE@
hard=@HARD@
LIMITS
rm -f "$run/ready" "$run/failed" "$run/phases" "$run/errors"

up() {
  cut -d ' ' -f 1 "$root/proc/uptime"
}
say() {
  echo "nix-broker: $*"
  { echo "nix-broker: $*" >"$root/dev/console"; } 2>/dev/null
}
phase() { # WORDS
  echo "$(up) $1" >>"$run/phases"
  say "$1 after $(up) s"
}
complaint() {
  tail -c 400 "$run/errors" | tr '\n' ' '
}
step() { # PHASE WHAT-FAILED FUNCTION
  if "$3" 2>>"$run/errors"; then
    phase "$1"
    : >"$run/errors"
  else
    echo "$2: $(complaint)" >"$run/failed.new"
    mv "$run/failed.new" "$run/failed"
    say "not ready: $(cat "$run/failed")"
    # Not a failure for systemd, which would kill what the steps have left running.
    exit 0
  fi
}

sh "$run/dead-man.sh" arm 2>"$run/arm-errors"
armed=$?
is_armed() {
  [ "$armed" != 0 ] || return 0
  cat "$run/arm-errors" >&2
  # Left on just long enough for the broker to read why.
  (sleep 300; systemctl poweroff --force --force || echo o >"$root/proc/sysrq-trigger") >/dev/null 2>&1 &
  return 1
}

replace() { # FILE MODE: with FILE.nix-broker; also where NixOS has a link into the store
  chmod "$2" "$1.nix-broker" && mv -f "$1.nix-broker" "$1"
}

# Before whatever else can fail, so that the broker can come and read what did.
authorize() {
  mkdir -p "$root/root/.ssh" && chmod 700 "$root/root/.ssh" &&
    cat >"$root/root/.ssh/authorized_keys.nix-broker" <<'CLIENT_KEY' &&
@CLIENT_KEY@
cert-authority,restrict @CLIENT_KEY@
CLIENT_KEY
    replace "$root/root/.ssh/authorized_keys" 600
}
authorize 2>"$run/key-errors"
authorized=$?
is_authorized() {
  cat "$run/key-errors" >&2
  return "$authorized"
}
step armed "the dead-man timers cannot be started, so this machine ends in 5 minutes" is_armed
step "key installed" "the broker's key cannot be installed" is_authorized

# User-data holds the host key, and builds with network access could read it. Those run as other users.
only_root() { # TOOL ADDRESS
  "$1" -w -C OUTPUT -d "$2" -m owner ! --uid-owner 0 -j REJECT 2>/dev/null ||
    "$1" -w -I OUTPUT -d "$2" -m owner ! --uid-owner 0 -j REJECT
}
only_root_by_route() { # FAMILY ADDRESS
  ip "$1" rule del to "$2" uidrange 1-4294967294 prohibit 2>/dev/null
  ip "$1" rule add to "$2" uidrange 1-4294967294 prohibit
}
close_imds() {
  only_root iptables 169.254.169.254/32 || only_root_by_route -4 169.254.169.254/32 || return 1
  [ -e "$root/proc/net/if_inet6" ] || return 0
  only_root ip6tables fd00:ec2::254/128 || only_root_by_route -6 fd00:ec2::254/128
}
step "imds closed" "builds cannot be kept from the instance's metadata" close_imds

configure_sshd() {
  # NixOS has done this, unless the image came with a host key.
  key=$root/etc/ssh/ssh_host_ed25519_key
  (umask 077; printf '%s\n' "$host_keys" | sed -n 's/^SSH_HOST_ED25519[_]KEY://p' | tr '|' '\n' >"$key.nix-broker") &&
    replace "$key" 600 &&
    printf '%s\n' "$host_keys" | sed -n 's/^SSH_HOST_ED25519[_]KEY_PUB://p' >"$key.pub.nix-broker" &&
    replace "$key.pub" 644 || return 1

  # The first value counts, so ours stand above what the image has. Releases before 9.8 know no penalties.
  file=$root/etc/ssh/sshd_config
  sshd=$(command -v sshd) || sshd=true
  for penalties in 'PerSourcePenalties no' ''; do
    : >"$run/errors"
    cat >"$file.nix-broker" <<SSHD_CONFIG || return 1
# nix-broker begin
MaxSessions 1000
MaxStartups 1000
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AuthorizedKeysFile %h/.ssh/authorized_keys
$penalties
# nix-broker end
SSHD_CONFIG
    sed '/^# nix-broker begin/,/^# nix-broker end/d' "$file" >>"$file.nix-broker" || return 1
    if "$sshd" -t -f "$file.nix-broker"; then
      replace "$file" 600 || return 1
      # Where sshd is started per connection there is nothing to restart.
      ! systemctl is-active --quiet sshd.service || systemctl restart sshd.service
      return
    fi
  done
  return 1
}
step "sshd configured" "sshd cannot be configured" configure_sshd

# A disk that is faster than the root volume, and is gone with the instance: for what builds throw away. Nix keeps that
# in /nix/var/nix/builds from 2.30 on, in /tmp before.
instance_store() {
  disk=$run/disk
  for device in "$root"/sys/block/nvme*; do
    grep -qs 'Amazon EC2 NVMe Instance Storage' "$device/device/model" || continue
    name=/dev/${device##*/}
    ! grep -q "^$name" "$root/proc/mounts" || return 0
    mkdir -p "$disk" "$root/nix/var/nix/builds" "$root/tmp" &&
      mkfs.ext4 -q -F -O ^has_journal -E nodiscard,lazy_itable_init=1 "$name" >/dev/null &&
      mount -o noatime "$name" "$disk" &&
      mkdir -p "$disk/builds" "$disk/tmp" && chmod 1777 "$disk/tmp" &&
      mount --bind "$disk/builds" "$root/nix/var/nix/builds" &&
      mount --bind "$disk/tmp" "$root/tmp" &&
      phase "instance store in use"
    return
  done
}
instance_store 2>>"$run/errors" || phase "instance store left alone: $(complaint)"

# One user for each build at a time; fewer would make builds wait.
build_users() {
  ! grep -qsE '^[[:space:]]*auto-allocate-uids[[:space:]]*=[[:space:]]*true' "$root/etc/nix/nix.conf" || return 0
  have=$(sed -n 's/^nixbld:[^:]*:[^:]*://p' "$root/etc/group" | tr ',' '\n' | grep -c .)
  number=0
  while [ "$have" -lt @BUILD_USERS@ ] && [ "$number" -lt 2000 ]; do
    number=$((number + 1))
    ! grep -q "^nixbld$number:" "$root/etc/passwd" || continue
    useradd --system --no-create-home --home-dir /var/empty --shell /sbin/nologin --gid nixbld --groups nixbld \
      "nixbld$number" || return 1
    have=$((have + 1))
  done
}
build_users 2>"$run/errors" || phase "build users are too few: $(complaint)"
: >"$run/errors"

# Where it is promised it has to be there: nested virtualisation is a setting of the launch.
check_kvm() {
  case ' @FEATURES@ ' in *' kvm '*) ;; *) return 0 ;; esac
  [ -e "$root/dev/kvm" ] || modprobe kvm_intel || modprobe kvm_amd
  [ -e "$root/dev/kvm" ]
}
step "kvm checked" "there is no /dev/kvm for the feature kvm" check_kvm

@CACHE@

# Set outright: an image claims features that this machine may not have. Ours come last, where they win.
configure_nix() {
  file=$root/etc/nix/nix.conf
  mkdir -p "$root/etc/nix" && : >"$file.nix-broker" || return 1
  [ ! -e "$file" ] || sed -E -e '/^# nix-broker begin/,/^# nix-broker end/d' \
    -e '/^[[:space:]]*(extra-)?system-features[[:space:]]*=/d' "$file" >>"$file.nix-broker" || return 1
  cat >>"$file.nix-broker" <<'NIX_CONF' || return 1

# nix-broker begin
@NIX_CONF@
system-features = @FEATURES@
# nix-broker end
NIX_CONF
  replace "$file" 644 || return 1
  # Started by its socket later, it reads the new file anyway.
  ! systemctl is-active --quiet nix-daemon.service || systemctl restart nix-daemon.service
}
step "nix configured" "Nix cannot be configured" configure_nix

phase ready
echo "@VERSION@ $(up)" >"$run/ready.new"
mv "$run/ready.new" "$run/ready"
