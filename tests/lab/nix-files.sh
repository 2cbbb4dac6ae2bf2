#!/bin/bash
# Checks every .nix file of the repository with a real Nix, without a network: each parses, the flake and its lock agree,
# and, when NIXPKGS_LIB names a copy of nixpkgs' lib/, the NixOS module is what nix/tests/module.nix expects of it.
#
#   nix-files.sh [RELEASE]       RELEASE is a root that roots.sh made (default forky)
#
# All else about these files needs nixpkgs: `nix flake check`. Exit status 77: see host.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
HOST=tests/lab/host.sh
name=nix-files-$$

bundle=$(mktemp)
trap 'rm -f "$bundle"; $HOST down $name' EXIT
$HOST up $name "${1:-forky}" >/dev/null
tar -cf "$bundle" Cargo.toml flake.nix flake.lock nix tests/nix tests/demo
$HOST put $name "$bundle" /root/bundle.tar
if [ -n "${NIXPKGS_LIB:-}" ]; then
  tar -C "$NIXPKGS_LIB" -cf "$bundle" .
  $HOST put $name "$bundle" /root/lib.tar
fi

$HOST in $name -- bash -euo pipefail -c '
  mkdir repo && cd repo && tar -xf ../bundle.tar
  count=0
  while IFS= read -r file; do
    nix-instantiate --parse "$file" >/dev/null || { echo "nix-files: does not parse: $file" >&2; exit 1; }
    count=$((count + 1))
  done < <(find . -name "*.nix" | sort)
  [ "$count" -gt 5 ] || { echo "nix-files: only $count files found" >&2; exit 1; }

  # What `nix flake lock` would find to do: an input that is not locked, or one that is locked from elsewhere.
  agree=$(nix-instantiate --eval --expr "
    let
      flake = import ./flake.nix;
      lock = builtins.fromJSON (builtins.readFile ./flake.lock);
      url = original: \"\${original.type}:\${original.owner}/\${original.repo}/\${original.ref}\";
      isLocked = name:
        let node = lock.nodes.\${lock.nodes.\${lock.root}.inputs.\${name}}; in
        url node.original == flake.inputs.\${name}.url && node.locked ? rev && node.locked ? narHash;
    in
    lock.version == 7
    && builtins.attrNames flake.inputs == builtins.attrNames lock.nodes.\${lock.root}.inputs
    && builtins.all isLocked (builtins.attrNames flake.inputs)")
  [ "$agree" = true ] || { echo "nix-files: flake.lock is not the lock of flake.nix" >&2; exit 1; }

  if [ ! -e ../lib.tar ]; then
    echo "nix-files: $count files parse, flake.lock fits; the module is evaluated when NIXPKGS_LIB is set"
    exit 0
  fi
  mkdir ../lib && tar -C ../lib -xf ../lib.tar
  wrong=$(NIXPKGS_LIB=$HOME/lib nix-instantiate --eval --strict --json --expr "import ./nix/tests/module.nix { }")
  [ "$wrong" = "[]" ] || { echo "nix-files: the NixOS module is not as expected: $wrong" >&2; exit 1; }
  echo "nix-files: $count files parse, flake.lock fits, the NixOS module is as expected"
'
