#!/bin/bash
# Records what stock Nix clients and daemons say to each other, as the files that tests/worker_golden.rs reads, and the
# .drv files of some derivations of every kind (derivations/<kind>.drv, written by the newest release that is named).
#
#   record.sh HOST_SH RELEASE...      HOST_SH is tests/lab/host.sh, RELEASE bookworm, trixie or forky
#
# Every conversation becomes worker/<Nix version>/<name>.client and .server: the bytes of each direction. Nothing in them
# is secret, but they differ from one recording to the next (times, temporary names), so record only to add something.
set -euo pipefail
host_sh=$1
here=$(cd "$(dirname "$0")" && pwd)
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/recorder" <<'SH'
#!/bin/bash
# Stands where a remote nix-daemon is expected.
name=/rec/$(cat /rec/name).$(date +%s%N)
export NIX_CONFIG='experimental-features = nix-command ca-derivations
sandbox = true
sandbox-paths = /bin/busybox /bin/sh=/bin/busybox
substituters =
system-features = ca-derivations'
tee "$name.client" | nix-daemon --stdio --store 'local?root=/remote' 2>"$name.stderr" | tee "$name.server"
SH

cat >"$work/golden.nix" <<'NIX'
let
  drv = name: script: more: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = "/bin/sh";
    args = [ "-c" script ];
  } // more);
  source = builtins.toFile "source" "some text\n";
in rec {
  dependent = drv "dependent" "echo ${good} ${good.dev} ${fixed} > $out" { };
  good = drv "good" ''
    bb=/bin/busybox
    echo building
    echo '@nix {"action":"setPhase","phase":"buildPhase"}'
    $bb mkdir $out
    $bb cat ${source} > $out/text
    $bb ln -s text $out/link
    echo '#!/bin/sh' > $out/run
    $bb chmod +x $out/run
    echo $out > $dev
  '' { outputs = [ "out" "dev" ]; };
  bad = drv "bad" "echo so long; exit 3" { };
  ca = drv "ca" "echo content > $out" {
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
  };
  fixed = drv "fixed" "printf hello > $out" {
    outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
  };
  structured = drv "structured" "echo structured; . ./.attrs.sh; echo hi > $(echo \${outputs[out]})" {
    __structuredAttrs = true; requiredSystemFeatures = [ ]; list = [ 1 "two" ];
  };
}
NIX

cat >"$work/kinds.nix" <<'NIX'
let
  golden = import ./golden.nix;
  drv = name: more: derivation ({ inherit name; system = "x86_64-linux"; builder = "/bin/sh"; } // more);
  ca = { __contentAddressed = true; outputHashAlgo = "sha256"; };
  makes-drv = drv "makes.drv" (ca // { outputHashMode = "text"; });
in golden // {
  inputs = drv "inputs" {
    outputs = [ "out" "lib" ]; from = [ golden.good golden.good.dev golden.fixed ];
    text = "a \"quoted\" \\ backslash,\ttab,\rreturn\nline, \${dollar} and é"; empty = "";
    requiredSystemFeatures = [ "kvm" "big-parallel" ];
  };
  features = drv "features" {
    __structuredAttrs = true; requiredSystemFeatures = [ "kvm" "nixos-test" ];
  };
  deferred = drv "deferred" { from = golden.ca; };
  impure = drv "impure" { __impure = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  text = makes-drv;
  dynamic = drv "dynamic" { from = builtins.outputOf makes-drv.outPath "out"; other = makes-drv; };
}
NIX

for release in "$@"; do
  host=record-$release
  "$host_sh" up "$host" "$release"
  "$host_sh" put "$host" "$work/recorder" /usr/local/bin/recorder 755
  "$host_sh" put "$host" "$work/golden.nix" /root/golden.nix
  "$host_sh" put "$host" "$work/kinds.nix" /root/kinds.nix
  version=$("$host_sh" in "$host" -- nix --version | sed 's/.* //')
  "$host_sh" in "$host" -- bash -c '
    mkdir -p /rec /remote
    [ -e /bin/busybox ] || ln -s "$(command -v busybox)" /bin/busybox
    export NIX_CONFIG="experimental-features = nix-command ca-derivations
substituters ="
    url="ssh-ng://localhost?remote-program=/usr/local/bin/recorder"
    say() { echo "$1" >/rec/name; shift; "$@" || echo "(exit status $?)"; }
    say ping nix store ping --store "$url"
    for what in good bad ca fixed structured dependent; do
      say "build-$what" nix-build /root/golden.nix -A $what --no-out-link --max-jobs 0 \
        --builders "$url x86_64-linux - 4 1 ca-derivations"
    done
    echo "a file" >/root/file
    file=$(nix-store --add /root/file)
    say copy-to nix copy --no-check-sigs --to "$url" "$file"
    say path-info nix path-info --json --store "$url" "$file"
    drv=$(nix-instantiate /root/golden.nix -A good)
    say copy-drv nix copy --no-check-sigs --derivation --to "$url" "$drv" || true
    say store-build nix build --no-link --store "$url" --eval-store auto -f /root/golden.nix good
    say realise nix-store --realise --store "$url" "$drv"
    say copy-log nix store copy-log --to "$url" "$drv"
    mkdir /rec/derivations
    export NIX_CONFIG="$NIX_CONFIG
extra-experimental-features = dynamic-derivations impure-derivations"
    for kind in good fixed ca dependent inputs features deferred impure text dynamic; do
      ! drv=$(nix-instantiate /root/kinds.nix -A $kind) || cp "$drv" /rec/derivations/$kind.drv
    done
  ' >"$work/$release.log" 2>&1 || { cat "$work/$release.log"; exit 1; }
  root=$("$host_sh" root "$host")
  rm -rf "$here/worker/$version"
  mkdir -p "$here/worker/$version"
  for file in "$root"/rec/*.client; do
    from=${file%.client}
    name=$(basename "$from")
    to=$here/worker/$version/${name%.*}
    [ ! -e "$to.client" ] || to=$to-second # two outputs, fetched over two connections
    cp "$from.client" "$to.client"
    cp "$from.server" "$to.server"
  done
  mkdir -p "$here/derivations"
  for file in "$root"/rec/derivations/*.drv; do install -m 644 "$file" "$here/derivations/"; done
  "$host_sh" down "$host"
done
