# What can be found out by evaluating, nothing built: `wrong` names what is not as it should be.
#
#   nix-instantiate --eval --strict --json nix/tests -A wrong      with the stand-in for nixpkgs, anywhere
#   NIXPKGS=/path/to/nixpkgs ... the same ...                      with the real NixOS, from a tree of nixpkgs
{
  nixpkgs ? builtins.getEnv "NIXPKGS",
  system ? "x86_64-linux",
}:

let
  isReal = nixpkgs != "";
  tree = /. + nixpkgs;
  # `nixpkgs` as a flake sees it, without a copy of the whole tree to the store.
  input =
    if isReal then
      {
        outPath = toString tree;
        lib = import (tree + "/lib") // {
          nixosSystem = arguments: import (tree + "/nixos/lib/eval-config.nix") ({ system = null; } // arguments);
        };
        legacyPackages.${system} = import tree { inherit system; };
      }
    else
      import ./stand-in;

  inherit (input) lib;
  pkgs = input.legacyPackages.${system};

  # The flake's outputs, tied to themselves as Nix does it.
  flake = (import ../../flake.nix).outputs {
    self = flake // {
      outPath = ../..;
    };
    nixpkgs = input;
  };

  # Binaries where the lab has them; only their place is looked at.
  package = {
    type = "derivation";
    name = "nix-broker-0.1.0";
    outPath = "/usr/local";
    outputName = "out";
    meta.mainProgram = "broker";
  };

  nixos =
    module:
    (input.lib.nixosSystem {
      modules = [
        ../module.nix
        {
          nixpkgs.hostPlatform = system;
          system.stateVersion = lib.trivial.release;
          services.nix-broker.package = lib.mkDefault package;
        }
        module
      ];
    }).config;
in
{
  inherit flake isReal;

  module = import ./module.nix {
    inherit lib package;
    evaluate = nixos;
    # Only its name and version are looked at; the rest is a Nix, so that NixOS can evaluate everything else.
    lix = pkgs.nix // {
      pname = "lix";
      version = "2.94.0";
      name = "lix-2.94.0";
    };
  };
}
