# A build with one large input, /t/blob of this machine, and one large output; and a small one beside it.
{ nonce }:
let
  inherit (import ./lib.nix) run;
  # A name of its own makes the same content another store path.
  input = builtins.path { path = /t/blob; name = "blob-${nonce}"; };
in
{
  inherit input;
  copy = run "copy" "bb cp ${input} $out; bb chmod u+w $out; echo $nonce >> $out" { inherit nonce; };
  measure = run "measure" "bb stat -c %s ${input} > $out; echo $nonce >> $out" { inherit nonce; };
}
