# The package: both binaries, in one output, because the hook and the broker must be of the same version.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
}:

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

  nativeBuildInputs = [ installShellFiles ];
  # Made by the program itself, so where it cannot be run they are left out.
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    $out/bin/broker man $out/share/man/man1
    installShellCompletion --cmd broker \
      --bash <($out/bin/broker completions bash) \
      --fish <($out/bin/broker completions fish) \
      --zsh <($out/bin/broker completions zsh)
  '';

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
