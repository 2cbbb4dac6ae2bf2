# What this repository offers to a flake. Only the wiring is here; what is wired together is in nix/.
{
  description = "A resident broker behind Nix's build-hook: builders on demand, pooled SSH, no machine left running";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forEachSystem =
        make: lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: make nixpkgs.legacyPackages.${system});
    in
    {
      packages = forEachSystem (pkgs: rec {
        nix-broker = pkgs.callPackage ./nix/package.nix { };
        default = nix-broker;
      });

      nixosModules.default =
        { lib, pkgs, ... }:
        {
          imports = [ ./nix/module.nix ];
          # Our own package set, not the user's: the one that Cargo.lock and rust-version were tried with.
          services.nix-broker.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };

      checks = forEachSystem (
        pkgs:
        import ./nix/checks.nix {
          inherit pkgs nixpkgs;
          package = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
          module = self.nixosModules.default;
        }
      );

      devShells = forEachSystem (pkgs: {
        default = pkgs.callPackage ./nix/shell.nix {
          nix-broker = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };
      });

      formatter = forEachSystem (pkgs: pkgs.nixfmt-tree);
    };
}
