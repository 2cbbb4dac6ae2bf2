# Outputs and inputs of unusual shape or size, logs, and failures.
{ nonce }:
let
  inherit (import ./lib.nix) run;
  upTo = n: builtins.genList (i: i) n;
in
{
  # Symlinks (also dangling and absolute), executables, empty directories, an empty file, odd names.
  tree = run "tree" ''
    bb mkdir -p $out/empty $out/bin "$out/a b"
    bb ln -s ../nowhere $out/bin/dangling
    bb ln -s $out/bin/tool $out/bin/absolute
    printf '#!/bin/sh\n' > $out/bin/tool
    bb chmod +x $out/bin/tool
    printf "" > "$out/a b/empty file"
    echo "$nonce" > "$out/ümläut"
  '' { inherit nonce; };

  many-files = run "many-files" ''
    bb mkdir $out
    i=0
    while [ $i -lt 10000 ]; do echo $i > $out/file-$i; i=$((i + 1)); done
  '' { inherit nonce; };

  loud = run "loud" ''
    line=0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789
    i=0
    while [ $i -lt 50000 ]; do echo "$i $line"; i=$((i + 1)); done
    echo the very last line
    echo $nonce > $out
  '' { inherit nonce; };

  many-inputs = run "many-inputs" "echo $files | bb wc -w > $out" {
    inherit nonce;
    files = map (i: builtins.toFile "many-${toString i}" "${nonce} ${toString i}") (upTo 2000);
  };

  cores = run "cores" "echo $NIX_BUILD_CORES $nonce > $out" { inherit nonce; };
  large = run "large" "bb dd if=/dev/zero of=$out bs=1048576 count=64 2>/dev/null; echo $nonce >> $out" { inherit nonce; };
  fails = run "fails" "echo before the end; echo the reason it fails; exit 3" { inherit nonce; };
  succeeds = run "succeeds" "echo $nonce > $out" { inherit nonce; };
  silent = run "silent" "bb sleep 1000; echo $nonce > $out" { inherit nonce; };
  ghost = run "ghost" "bb sleep 1000; echo $nonce > $out" { inherit nonce; };
}
