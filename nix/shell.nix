# `nix develop`: what the commands of the Makefile use, in the versions that CI uses.
{
  mkShell,
  nix-broker,
  cargo,
  cargo-deny,
  clippy,
  nixfmt-tree,
  openssh,
  rust-analyzer,
  rustc,
  rustfmt,
}:

mkShell {
  inputsFrom = [ nix-broker ];
  packages = [
    cargo
    cargo-deny
    clippy
    nixfmt-tree
    openssh
    rust-analyzer
    rustc
    rustfmt
  ];
}
