# One derivation of each kind that travels differently.
{ nonce }:
let
  inherit (import ./lib.nix) busybox run;
  input-addressed = run "input-addressed" "echo $nonce > $out" { inherit nonce; };
  multi = run "multi" ''
    bb mkdir -p $out/bin $dev
    echo "$dev" > $out/refers-to-dev
    echo header > $dev/header.h
    echo "$nonce" > $doc
  '' { inherit nonce; outputs = [ "out" "dev" "doc" ]; };
in
{
  inherit input-addressed multi;

  fixed = run "fixed" "printf hello > $out" {
    inherit nonce;
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "hello";
  };

  structured = derivation {
    name = "structured";
    system = builtins.currentSystem;
    builder = busybox;
    __structuredAttrs = true;
    inherit nonce;
    list = [ "a" "b c" ];
    # Not by NIX_ATTRS_JSON_FILE: Nix 2.8 sets it to a path outside of its own sandbox.
    args = [
      "sh"
      "-euc"
      ''
        ${busybox} grep -q 'b c' .attrs.json
        out=$(${busybox} sed -n 's/.*"out":"\([^"]*\)".*/\1/p' .attrs.json)
        echo structured > $out
        :
      ''
    ];
  };

  floating = run "floating" "echo content-addressed > $out; echo ${nonce} > $extra" {
    inherit nonce;
    outputs = [ "out" "extra" ];
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
  };

  uses-dev = run "uses-dev" "bb cat $dev/header.h > $out; echo $dev >> $out" { inherit nonce; inherit (multi) dev; };
}
