# Derivations whose only program is a static busybox from this machine, so that tests need no package set.
let
  # In a directory, because busybox goes by the name of its file, and a store path's begins with a hash.
  busybox = "${builtins.path { path = ./bin; name = "busybox"; }}/busybox";
in
{
  inherit busybox;

  # A build by a shell script, in which `bb` is busybox. The last command is a builtin on purpose: a program that the
  # shell replaces itself with may close its output before it exits, and Nix takes that for the end of the build.
  run = name: script: attrs: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = busybox;
    args = [ "sh" "-euc" "bb() { ${busybox} \"$@\"; }\n${script}\n:" ];
  } // attrs);
}
