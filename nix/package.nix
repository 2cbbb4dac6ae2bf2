# The package: both binaries, in one output, because the hook and the broker must be of the same version.
{ lib, rustPlatform }:

let
  manifest = (lib.importTOML ../Cargo.toml).package;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;

  # Named one by one, so that an edit of the README or of nix/ compiles nothing.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../.clippy.toml
      ../.rustfmt.toml
      ../src
      ../tests
    ];
  };

  cargoLock.lockFile = ../Cargo.lock;

  # The hermetic ones only. The others start hosts of tests/lab, which need root, namespaces and three Debian roots;
  # what they show is shown on NixOS by nix/tests.
  cargoTestFlags = [
    "--lib"
    "--bins"
    "--test"
    "layers"
  ];

  meta = {
    inherit (manifest) description;
    license = with lib.licenses; [
      mit
      asl20
    ];
    mainProgram = "broker";
    platforms = lib.platforms.linux;
  };
}
