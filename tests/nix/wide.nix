# `n` independent derivations that share `inputs` input files.
{ nonce, n, inputs ? "2", sleep ? "0" }:
let
  inherit (import ./lib.nix) run;
  upTo = text: builtins.genList (i: i) (builtins.fromJSON text);
  files = map (i: builtins.toFile "input-${toString i}" "${nonce} ${toString i}") (upTo inputs);
in
map (i: run "wide-${toString i}" "echo building ${toString i}; bb sleep ${sleep}; bb cat $files > $out" { inherit nonce files; }) (upTo n)
