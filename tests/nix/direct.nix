# Large builds and what needs them, each on the builders with a feature of its own.
{ nonce, mib }:
let
  inherit (import ./lib.nix) run;
  on = feature: { inherit nonce mib; requiredSystemFeatures = [ feature ]; };
in
rec {
  # Noise, which no link makes smaller. What refers to it is small, and cannot go before it.
  made = run "made" "bb head -c $((mib * 1048576)) /dev/urandom > $out" (on "a");
  refers = run "refers" "echo ${made} > $out" (on "a");
  used = run "used" "bb cmp $(bb cat ${refers}) ${made} && bb sha256sum < ${made} > $out" (on "b");
}
