# The flake input `nixpkgs`, as far as our flake uses it. See lib.nix for what it is and what it is not.
let
  # nixpkgs' own library, without its packages and modules, where NIXPKGS_LIB names one: the real module system and types.
  real = builtins.getEnv "NIXPKGS_LIB";
  lib = if real == "" then import ./lib.nix else import (/. + real);
  packages = lib.genAttrs [
    "x86_64-linux"
    "aarch64-linux"
    "aarch64-darwin"
  ] (system: import ./pkgs.nix { inherit lib system nixosSystem; });
  nixosSystem =
    {
      modules,
      system ? null,
      specialArgs ? { },
    }:
    let
      platform = lib.head (
        lib.optional (system != null) system
        ++ map (module: module.nixpkgs.hostPlatform) (
          lib.filter (module: lib.isAttrs module && module ? nixpkgs.hostPlatform) modules
        )
        ++ [ "x86_64-linux" ]
      );
    in
    lib.evalModules {
      modules = [ ./nixos.nix ] ++ modules;
      specialArgs = {
        pkgs = packages.${platform};
        modulesPath = toString ./modules;
      }
      // specialArgs;
    };
in
{
  outPath = toString ./.;
  legacyPackages = packages;
  lib = lib // {
    inherit nixosSystem;
  };
}
