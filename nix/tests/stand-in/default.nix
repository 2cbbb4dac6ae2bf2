# The flake input `nixpkgs`, as far as our flake uses it. See lib.nix for what it is and what it is not.
let
  lib = import ./lib.nix;
  packages = lib.genAttrs [
    "x86_64-linux"
    "aarch64-linux"
    "aarch64-darwin"
  ] (system: import ./pkgs.nix { inherit lib system; });
in
{
  outPath = "/nixpkgs";
  legacyPackages = packages;
  lib = lib // {
    nixosSystem =
      {
        modules,
        system ? "x86_64-linux",
        specialArgs ? { },
      }:
      lib.evalModules {
        modules = [ ./nixos.nix ] ++ modules;
        specialArgs = {
          pkgs = packages.${system};
          modulesPath = ./.;
        }
        // specialArgs;
      };
  };
}
