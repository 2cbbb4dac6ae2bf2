# A build whose phases last long enough to be met: `big` is a store path to send, `mib` the size of what comes back.
{ nonce, big ? "", mib ? "0", sleep ? "0" }:
let
  inherit (import ./lib.nix) run;
in
run "phases" ''
  echo building
  bb sleep ${sleep}
  bb dd if=/dev/zero of=$out bs=1048576 count=${mib} 2>/dev/null
  echo $nonce >> $out
'' { inherit nonce; big = if big == "" then "" else builtins.storePath big; }
