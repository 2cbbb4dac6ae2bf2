# `width` columns of `depth` derivations each, and one on top that needs them all: width * depth + 1 in all.
{ nonce, width ? "20", depth ? "11", sleep ? "0" }:
let
  inherit (import ./lib.nix) run;
  upTo = text: builtins.genList (i: i) (builtins.fromJSON text);
  cell = column: row: run "cell-${toString column}-${toString row}" ''
    echo "building ${toString column} ${toString row}"
    bb sleep ${sleep}
    bb cat $below > $out
    echo "$out made of $below" >> $out
  '' {
    inherit nonce;
    below = if row == 0 then builtins.toFile "seed-${toString column}" nonce else cell column (row - 1);
  };
  tops = map (column: cell column (builtins.fromJSON depth - 1)) (upTo width);
in
run "graph" "bb cat $tops > $out" { inherit nonce tops; }
