# A package set tuned for a processor: only some of its derivations say so (nixpkgs #342208).
{ nonce }:
let
  inherit (import ./lib.nix) run;
in
rec {
  # Any x86-64 machine of the last fifteen years has this one, so the builders of the tests do, too.
  tuned-tool = run "tuned-tool" "echo tool $nonce > $out" {
    inherit nonce;
    requiredSystemFeatures = [ "gccarch-x86-64-v2" ];
  };

  # What `stdenv` is: made by a raw `derivation`, with no word of the processor.
  raw-user = run "raw-user" "bb cat $tool > $out; echo used >> $out" { inherit nonce; tool = tuned-tool; };
  raw-top = run "raw-top" "bb cat $below > $out; echo on top >> $out" { inherit nonce; below = raw-user; };

  # A fetcher runs tuned programs; what it fetched is the same whatever fetched it.
  fetched = run "fetched" "bb cat $tool > /dev/null; printf hello > $out" {
    tool = tuned-tool;
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "hello";
  };
  untuned = run "untuned" "bb cat $source > $out; echo $nonce >> $out" { inherit nonce; source = fetched; };
}
