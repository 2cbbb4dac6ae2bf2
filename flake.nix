# What this repository offers to a flake. Only the wiring is here; what is wired together is in nix/.
{
  description = "A resident broker behind Nix's build-hook: builders on demand, pooled SSH, no machine left running";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forEach = lib.genAttrs;
      linux = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      pkgsFor = system: nixpkgs.legacyPackages.${system};
      ours = pkgs: self.packages.${pkgs.stdenv.hostPlatform.system};
      builder = system: self.nixosConfigurations."builder-${system}".config;
    in
    {
      packages = forEach linux (
        system:
        let
          pkgs = pkgsFor system;
        in
        rec {
          nix-broker = pkgs.callPackage ./nix/package.nix { };
          default = nix-broker;
          # Both programs without a single library of the system, for machines that are not NixOS.
          static = pkgs.pkgsStatic.callPackage ./nix/package.nix { };
          demo = pkgs.callPackage ./nix/demo.nix { inherit nix-broker; };
          # What `broker image` is to upload.
          builder-image = (builder system).system.build.images.amazon or (builder system).system.build.amazonImage;
        }
      );

      apps = forEach linux (
        system:
        let
          app = package: {
            type = "app";
            program = lib.getExe package;
            meta.description = package.meta.description or "nix-broker";
          };
        in
        rec {
          broker = app self.packages.${system}.nix-broker;
          demo = app self.packages.${system}.demo;
          default = broker;
        }
      );

      overlays.default = final: _: { nix-broker = final.callPackage ./nix/package.nix { }; };

      nixosModules = {
        # The machine whose builds go to pools.
        broker =
          { lib, pkgs, ... }:
          {
            imports = [ ./nix/module.nix ];
            # Our own package set, not the user's: the one that Cargo.lock and rust-version were tried with.
            services.nix-broker.package = lib.mkDefault (ours pkgs).default;
          };
        # The machine that builds.
        builder = ./nix/builder.nix;
        default = self.nixosModules.broker;
      };

      # The images that EC2 builders boot, one for each kind of processor.
      nixosConfigurations = lib.mapAttrs' (
        name: system:
        lib.nameValuePair name (
          lib.nixosSystem {
            modules = [
              ./nix/image.nix
              { nixpkgs.hostPlatform = system; }
            ];
          }
        )
      ) (lib.mapAttrs' (_: system: lib.nameValuePair "builder-${system}" system) (forEach linux (system: system)));

      checks = forEach linux (
        system:
        import ./nix/checks.nix {
          pkgs = pkgsFor system;
          inherit nixpkgs;
          package = self.packages.${system}.default;
          modules = self.nixosModules;
        }
      );

      devShells = forEach linux (system: {
        default = (pkgsFor system).callPackage ./nix/shell.nix { nix-broker = self.packages.${system}.default; };
      });

      formatter = forEach linux (system: (pkgsFor system).nixfmt-tree);
    };
}
