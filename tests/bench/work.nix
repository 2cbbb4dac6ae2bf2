# The work of the benchmark. The builder is the host's own busybox, which client and builders have alike, so that only
# what a benchmark is about is sent. `nonce` makes everything new.
{ nonce, n, blob ? null }:
let
  upTo = text: builtins.genList (i: i) (builtins.fromJSON text);
  run = name: script: attrs: derivation ({
    name = "${name}-${nonce}";
    system = builtins.currentSystem;
    builder = "/bin/busybox";
    args = [ "sh" "-euc" "${script}\n:" ];
    inherit nonce;
  } // attrs);
  line = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";
  page = builtins.concatStringsSep "" (builtins.genList (_: line) 16);
  files = map (i: builtins.toFile "input-${toString i}" "${nonce} ${toString i}\n${page}") (builtins.genList (i: i) 20);
  # A name of its own makes the same content another store path.
  large = builtins.path { path = blob; name = "blob-${nonce}"; };
in
{
  # Independent builds that share 20 small inputs.
  wide = map (i: run "wide-${toString i}" "/bin/busybox cat $files > $out; echo built ${toString i}" { inherit files; }) (upTo n);

  # The same, in numbers.
  many = map (i: run "many-${toString i}" "/bin/busybox cat $files > $out; echo built ${toString i}" { inherit files; }) (upTo n);

  # Each needs the one before.
  chain =
    let link = i: run "link-${toString i}" "(/bin/busybox cat $prev; echo ${toString i}) > $out" {
      prev = if i == 0 then builtins.toFile "seed" nonce else link (i - 1);
    };
    in [ (link (builtins.fromJSON n - 1)) ];

  # One large input, one large output.
  bulk = map (i: run "bulk-${toString i}" "/bin/busybox cp -r ${large} $out" { }) (upTo n);

  # The same with content that becomes smaller when it is packed, as programs do.
  text = map (i: run "text-${toString i}" "/bin/busybox cp -r ${large} $out" { }) (upTo n);

  # Many builds that need the same large input, and make little of it.
  shared = map (i: run "shared-${toString i}" "/bin/busybox stat -c %s ${large} > $out; echo ${toString i} >> $out" { }) (upTo n);
}
