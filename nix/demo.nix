# `nix run .#demo`: contrib/demo.sh with what it needs.
{
  writeShellApplication,
  nix-broker,
  nix,
  openssh,
  coreutils,
  pkgsStatic,
}:

writeShellApplication {
  name = "nix-broker-demo";
  runtimeInputs = [
    nix-broker
    nix
    openssh
    coreutils
  ];
  text = ''
    sh ${../contrib/demo.sh} ${../tests/demo/flake.nix} ${pkgsStatic.busybox}/bin/busybox
  '';
}
