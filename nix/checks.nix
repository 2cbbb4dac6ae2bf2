# What `nix flake check` builds: the package and its lints, the module evaluated, and virtual machines that use it.
{
  pkgs,
  nixpkgs,
  package,
  modules,
}:

let
  inherit (pkgs) lib;

  # A command of cargo on the package's own source and dependencies. Not an override of the package: that one compiles
  # through cargo-auditable, which takes the place that clippy needs.
  cargo =
    name: tools: command:
    pkgs.stdenv.mkDerivation {
      name = "nix-broker-${name}";
      inherit (package) src cargoDeps;
      nativeBuildInputs = [
        pkgs.cargo
        pkgs.rustc
        pkgs.rustPlatform.cargoSetupHook
      ]
      ++ tools;
      buildPhase = ''
        runHook preBuild
        ${command}
        runHook postBuild
      '';
      installPhase = "touch $out";
    };

  moduleCheck =
    name: failed:
    if failed == [ ] then
      pkgs.runCommand "nix-broker-${name}" { } "touch $out"
    else
      throw "${name}: not as it should be: ${lib.concatStringsSep "; " failed}";

  # nix/tests, with this nixpkgs.
  evaluated = import ./tests {
    inherit nixpkgs;
    inherit (pkgs.stdenv.hostPlatform) system;
  };

  test =
    file: arguments:
    pkgs.testers.runNixOSTest {
      imports = [ (lib.setDefaultModuleLocation file (import file ({ inherit modules; } // arguments))) ];
    };

  # One Nix of each way in which `build-hook` is read: from 2.25 to 2.33 not from nix.conf, before and after from there.
  # Which of them this nixpkgs has changes; an old one may be an alias that throws.
  versions = lib.filterAttrs (_: nix: (builtins.tryEval nix.drvPath).success) (
    lib.getAttrs (lib.intersectLists (lib.attrNames pkgs.nixVersions) [
      "nix_2_24"
      "nix_2_28"
      "nix_2_31"
      "nix_2_34"
      "latest"
    ]) pkgs.nixVersions
  );
in
{
  inherit package;

  format = cargo "format" [ pkgs.rustfmt ] "cargo fmt --check";
  lint = cargo "lint" [ pkgs.clippy ] "cargo clippy --frozen --all-targets -- --deny warnings";

  module = moduleCheck "module" evaluated.module.wrong;

  vm-local = test ./tests/local.nix { };
  vm-builder = test ./tests/builder.nix { };
}
// lib.mapAttrs' (version: nix: lib.nameValuePair "vm-build-${version}" (test ./tests/build.nix { inherit nix; })) versions
