# What can be found out by evaluating, nothing built: `wrong` names what is not as it should be.
#
#   nix-instantiate --eval --strict --json nix/tests -A wrong      with the stand-in for nixpkgs, anywhere
#   NIXPKGS=/path/to/nixpkgs ... the same ...                      with the real NixOS, from a tree of nixpkgs
{
  # A tree, nothing, or what a flake has as its input.
  nixpkgs ? builtins.getEnv "NIXPKGS",
  system ? "x86_64-linux",
}:

let
  isReal = nixpkgs != "";
  tree = /. + nixpkgs;
  # `nixpkgs` as a flake sees it, without a copy of the whole tree to the store.
  input =
    if builtins.isAttrs nixpkgs then
      nixpkgs
    else if isReal then
      {
        outPath = toString tree;
        lib = import (tree + "/lib") // {
          nixosSystem = arguments: import (tree + "/nixos/lib/eval-config.nix") ({ system = null; } // arguments);
        };
        legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: import tree { inherit system; });
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

  # A builder without what makes it an image.
  nixos' =
    module:
    (input.lib.nixosSystem {
      modules = [
        ../builder.nix
        {
          nixpkgs.hostPlatform = system;
          system.stateVersion = lib.trivial.release;
        }
        module
      ];
    }).config;

  module = import ./module.nix {
    inherit lib system package;
    evaluate = nixos;
    # Only its name and version are looked at; the rest is a Nix, so that NixOS can evaluate everything else.
    lix = pkgs.nix // {
      pname = "lix";
      version = "2.94.0";
      name = "lix-2.94.0";
    };
  };

  # The machine of tests/nixos.rs: what a person would write, and what NixOS makes of it.
  tiger = nixos {
    services.nix-broker = {
      enable = true;
      # The test writes the file itself, from the value.
      checkConfig = false;
      settings.pool = [
        {
          name = "local";
          features = [
            "big-parallel"
            "gccarch-znver3"
          ];
          slots = 4;
          max-builders = 2;
          idle-timeout = "3s";
          launch-timeout = "60s";
          local = { };
        }
      ];
    };
    nix.settings = {
      experimental-features = [
        "nix-command"
        "flakes"
      ];
      # There is no network.
      substituters = lib.mkForce [ ];
    };
  };
  # The unit for other distributions says what the module says, and nothing that the module does not.
  contribFits =
    let
      module = (nixos units.hosts).systemd.services.nix-broker.serviceConfig;
      value = v: if lib.isBool v then (if v then "true" else "false") else toString v;
      wanted = lib.concatLists (
        lib.mapAttrsToList (key: v: map (one: "${key}=${value one}") (if lib.isList v then v else [ v ])) (
          removeAttrs module [ "ExecStart" ]
        )
      );
      ours = lib.filter (line: lib.isString line && builtins.match "[A-Z][A-Za-z]+=.*" line != null) (
        builtins.split "\n" (lib.elemAt (builtins.split "\\[Service]" (builtins.readFile ../../contrib/systemd/nix-broker.service)) 2)
      );
      others = [
        "ExecStart=/usr/local/bin/broker serve"
        "Environment=HOME=/var/lib/nix-broker"
        "WantedBy=multi-user.target"
        "Also=nix-broker.socket"
      ];
      socket = (nixos units.hosts).systemd.sockets.nix-broker;
      socketText = builtins.readFile ../../contrib/systemd/nix-broker.socket;
      socketLines =
        lib.mapAttrsToList (key: v: "${key}=${value v}") (socket.socketConfig // socket.unitConfig)
        ++ map (path: "ListenStream=${path}") socket.listenStreams
        ++ map (target: "WantedBy=${target}") socket.wantedBy;
    in
    lib.all (line: lib.elem line ours) wanted
    && lib.all (line: lib.elem line (wanted ++ others)) ours
    && lib.all (line: lib.hasInfix "\n${line}\n" socketText) socketLines;

  # A machine with a pool of each kind, for its unit.
  units =
    lib.mapAttrs
      (_: pool: {
        services.nix-broker = {
          enable = true;
          checkConfig = false;
          settings.pool = [ pool ];
        };
      })
      {
        hosts = {
          name = "rack";
          hosts = [
            {
              address = "rack.example.org";
              user = "nix";
              host-keys = [ "ssh-ed25519 AAAA" ];
            }
          ];
        };
        local = {
          name = "here";
          local = { };
        };
      };

  # What the README tells a NixOS user to write is a configuration without a complaint.
  readmeFits =
    lib.hasInfix (builtins.readFile ./example.nix) (builtins.readFile ../../README.md)
    && lib.all (a: a.assertion || !lib.hasPrefix "services.nix-broker" a.message) (nixos ./example.nix).assertions;

  # Every file of the repository that Nix is to read.
  files =
    directory:
    lib.concatLists (
      lib.mapAttrsToList (
        name: kind:
        let
          path = directory + "/${name}";
        in
        if kind == "directory" && !(lib.elem name [ ".git" "target" ]) then
          files path
        else
          lib.optional (kind == "regular" && builtins.match ".*\\.nix" name != null) path
      ) (builtins.readDir directory)
    );

  # What `nix flake lock` would find to do: an input that is not locked, or one that is locked from elsewhere.
  lockFits =
    let
      flake = import ../../flake.nix;
      lock = builtins.fromJSON (builtins.readFile ../../flake.lock);
      url = original: "${original.type}:${original.owner}/${original.repo}/${original.ref}";
      isLocked =
        name:
        let
          node = lock.nodes.${lock.nodes.${lock.root}.inputs.${name}};
        in
        url node.original == flake.inputs.${name}.url && node.locked ? rev && node.locked ? narHash;
    in
    lock.version == 7
    && lib.attrNames flake.inputs == lib.attrNames lock.nodes.${lock.root}.inputs
    && lib.all isLocked (lib.attrNames flake.inputs);
  # Each output of the flake comes to a derivation (or whatever it is), on both systems.
  drv = value: builtins.seq value.drvPath (lib.isString value.drvPath);
  outputs =
    let
      each = kind: names: lib.all (system: lib.attrNames flake.${kind}.${system} == names) [ "x86_64-linux" "aarch64-linux" ];
      every =
        kind: lib.all (system: lib.all drv (lib.attrValues flake.${kind}.${system})) [ "x86_64-linux" "aarch64-linux" ];
      image = flake.nixosConfigurations.builder-aarch64-linux.config;
      unit = name: image.systemd.services.${name};
    in
    {
      "packages" = each "packages" [ "builder-image" "default" "demo" "nix-broker" "static" ] && every "packages";
      "apps" =
        each "apps" [ "broker" "default" "demo" ]
        && lib.all (app: app.type == "app" && lib.hasPrefix builtins.storeDir app.program) (
          lib.attrValues flake.apps.x86_64-linux
        );
      "devShells" = every "devShells";
      "checks" =
        every "checks"
        && lib.all (name: flake.checks.x86_64-linux ? ${name}) [
          "format"
          "lint"
          "module"
          "package"
          "vm-builder"
          "vm-local"
        ]
        && lib.any (lib.hasPrefix "vm-build-") (lib.attrNames flake.checks.x86_64-linux);
      "formatter" = drv flake.formatter.x86_64-linux;
      "modules" = lib.attrNames flake.nixosModules == [ "broker" "builder" "default" ];
      "overlay" = (flake.overlays.default pkgs pkgs) ? nix-broker;
      "images" = lib.attrNames flake.nixosConfigurations == [ "builder-aarch64-linux" "builder-x86_64-linux" ];

      "an image has no complaint" = lib.all (a: a.assertion) image.assertions;
      "an image's dead-man waits for nothing" =
        lib.all (
          name:
          image.systemd.timers.${name}.wantedBy == [ "sysinit.target" ]
          && image.systemd.timers.${name}.unitConfig.DefaultDependencies == false
          && (unit name).unitConfig.DefaultDependencies == false
          && (unit name).after or [ ] == [ ]
        ) [ "nix-broker-dead-man" "nix-broker-hard-limit" ]
        && image.systemd.timers.nix-broker-hard-limit.timerConfig.OnBootSec == "90120s";
      "an image knows its limits" =
        image.environment.etc."nix-broker/limits".text == "hard=90000\nidle=1200\nlease=900\nlease-busy=3600\n";
      "an image listens for SSH alone" =
        image.networking.firewall.allowedTCPPorts == [ 22 ]
        && image.services.openssh.settings.MaxSessions == 1000
        && image.services.openssh.settings.PasswordAuthentication == false
        && !(image.services.amazon-ssm-agent.enable)
        && !(image.virtualisation.amazon-init.enable);
      "an image with a cache takes from it, and uploads from a queue" =
        let
          cached = cache: (nixos' { services.nix-broker-builder = { enable = true; preload = [ ]; inherit cache; }; });
          keys = {
            url = "s3://c?region=eu-central-1";
            publicKey = "c-1:AAAA";
          };
          takes = cached keys;
          puts = cached (keys // { secretKeyFile = "/run/secrets/c"; });
        in
        !(image.nix.settings ? extra-substituters)
        && takes.nix.settings.extra-substituters == [ keys.url ]
        && takes.nix.settings.extra-trusted-public-keys == [ keys.publicKey ]
        && takes.nix.settings.fallback
        && !(takes.nix.settings ? post-build-hook)
        && !(takes.systemd.services ? nix-broker-cache)
        && lib.hasSuffix "cache.sh" (toString puts.nix.settings.post-build-hook)
        && lib.hasInfix keys.url puts.systemd.services.nix-broker-cache.preStart;
      "an image is what can be uploaded" = image.amazonImage.format == "raw";
      "an image claims no feature by itself" = image.nix.settings.system-features == [ ];
      "an image builds for root alone" = image.nix.settings.trusted-users == [ "root" ] && !image.nix.distributedBuilds;
    };
in
{
  inherit flake isReal module;

  # The files that do not parse; an import of one that does comes to a value, of which nothing is asked.
  syntax = lib.concatMapStringsSep " " toString (
    lib.filter (file: !(builtins.tryEval (builtins.seq (import file) true)).success) (files ../..)
  );

  # Everything that should not be as it is.
  wrong =
    module.wrong
    ++ lib.attrNames (lib.filterAttrs (_: holds: !holds) outputs)
    ++ lib.optional (!contribFits) "the units of contrib/systemd are not what the module writes"
    ++ lib.optional (!readmeFits) "the README's example for NixOS is not nix/tests/example.nix, or is refused"
    ++ lib.optional (!lockFits) "flake.lock is not the lock of flake.nix"
    ++ lib.optional (
      builtins.readFile ./module.snapshot != module.snapshot
    ) "nix/tests/module.snapshot is not what the module is now: tests/lab/evaluate.sh --raw module.snapshot";

  tiger = {
    isReal = isReal;
    nixConf = tiger.environment.etc."nix/nix.conf".source.text;
    files = lib.mapAttrs (name: file: { inherit (file) text mode; }) (
      lib.filterAttrs (name: _: name == "xdg/nix/nix.conf") tiger.environment.etc
    );
    broker = builtins.fromJSON tiger.environment.etc."nix-broker/config.toml".source.value;
    daemonEnvironment = lib.mapAttrs (_: toString) (
      removeAttrs tiger.systemd.services.nix-daemon.environment [
        "PATH"
        "LOCALE_ARCHIVE"
        "TZDIR"
      ]
    );
  };

  # The text of our units, for systemd-analyze.
  units = lib.mapAttrs (_: configuration: (nixos configuration).systemd.units."nix-broker.service".text) units;
}
