# What services.nix-broker makes of configurations, right ones and wrong ones; evaluated, nothing is built.
#
# The value is the list of what is not as it should be, empty when all is well. Two ways to evaluate:
#   - against stand-ins for the options that the module touches, with nixpkgs' `lib` alone, in a second:
#       NIXPKGS_LIB=.../nixpkgs/lib nix-instantiate --eval --strict --expr 'import ./nix/tests/module.nix { }'
#   - against the real NixOS, by nix/checks.nix, which passes `evaluate`.
{
  lib ? import (builtins.getEnv "NIXPKGS_LIB"),
  # From a module to an evaluated configuration; `null` is the stand-ins.
  evaluate ? null,
  # What `evaluate` gives as the package.
  package ? {
    type = "derivation";
    name = "nix-broker-0.1.0";
    outPath = "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-nix-broker-0.1.0";
    meta.mainProgram = "broker";
  },
  # What NixOS calls the Nix that has its own, closed protocol; only the stand-in needs no real one.
  lix ? { name = "lix-2.94.0"; pname = "lix"; version = "2.94.0"; type = "derivation"; outPath = "/lix"; },
}:

let
  withStandIns =
    let
      inherit (lib) mkOption types;
      any = mkOption { type = types.anything; default = { }; };
      value = type: default: mkOption { inherit type default; };
      strings = types.listOf types.str;
      standIns.options = {
        assertions = mkOption { type = types.listOf types.anything; default = [ ]; };
        warnings = value strings [ ];
        environment.etc = any;
        environment.systemPackages = value (types.listOf types.anything) [ ];
        security.allowUserNamespaces = value types.bool true;
        programs.ssh.package = value types.anything "/openssh";
        systemd.services = mkOption {
          type = types.attrsOf (
            types.submodule {
              # As NixOS has it: lists of a setting are joined, other values must not contradict each other.
              freeformType = types.attrsOf types.anything;
              options.serviceConfig = mkOption {
                type = types.attrsOf (
                  types.oneOf [
                    types.bool
                    types.int
                    types.str
                    strings
                  ]
                );
                default = { };
              };
            }
          );
          default = { };
        };
        users.users = any;
        users.groups = any;
        nix.enable = value types.bool true;
        nix.distributedBuilds = value types.bool false;
        nix.package = value types.anything { name = "nix-2.31.2"; };
        nix.settings = mkOption {
          type = types.submodule {
            freeformType = types.attrsOf types.anything;
            options.allowed-users = value strings [ "*" ];
            options.trusted-users = value strings [ "root" ];
          };
          default = { };
        };
      };
      pkgs = {
        formats.toml = _: {
          # The shape of what TOML can say, without dates.
          type =
            let
              scalar = types.oneOf [
                types.bool
                types.int
                types.float
                types.str
                types.path
              ];
              # The description ends the recursion that a description made of the parts' would be.
              toml =
                types.oneOf [
                  scalar
                  (types.listOf toml)
                  (types.attrsOf toml)
                ]
                // {
                  description = "what TOML can say";
                };
            in
            toml;
          generate = name: value: "/generated/${builtins.hashString "sha256" (builtins.toJSON value)}-${name}";
        };
        runCommand = name: _: script: "/checked/${builtins.hashString "sha256" script}-${name}";
        stdenv = {
          buildPlatform.canExecute = _: true;
          hostPlatform = { };
        };
      };
    in
    module:
    (lib.evalModules {
      modules = [
        ../module.nix
        standIns
        { services.nix-broker.package = package; }
        module
      ];
      specialArgs = { inherit pkgs; };
    }).config;

  configured = if evaluate == null then withStandIns else evaluate;

  rack = {
    name = "rack";
    features = [ "big-parallel" ];
    hosts = [
      {
        address = "rack.example.org";
        user = "nix";
        host-keys = [ "ssh-ed25519 AAAA" ];
      }
    ];
  };
  here = {
    name = "here";
    local = { };
  };

  # The machine of a case: the service with these pools, and the rest of its configuration.
  machine =
    pools: rest:
    configured {
      imports = [ rest ];
      services.nix-broker = {
        enable = true;
        settings.pool = pools;
      };
    };

  ours = lib.filter (lib.hasPrefix "services.nix-broker:");
  failures = config: ours (map (a: a.message) (lib.filter (a: !a.assertion) config.assertions));
  service = config: config.systemd.services.nix-broker;
  unit = config: (service config).serviceConfig;
  inert = configured { };
  file = config: toString config.environment.etc."nix-broker/config.toml".source;
  fails = text: !(builtins.tryEval (builtins.stringLength text)).success;
  says = word: messages: lib.length messages == 1 && lib.hasInfix word (lib.head messages);

  hosts = machine [ rack ] { };
  local = machine [ rack here ] { };
  hook = "${package}/bin/broker-hook";

  expectations = {
    "switched off it leaves everything alone" =
      !(inert.systemd.services ? nix-broker)
      && !(inert.users.users ? nix-broker)
      && !(inert.environment.etc ? "xdg/nix/nix.conf")
      && !(inert.nix.settings ? build-hook)
      && !inert.nix.distributedBuilds;

    "a good configuration has no complaint" =
      map failures [ hosts local ] == [ [ ] [ ] ] && map (c: ours c.warnings) [ hosts local ] == [ [ ] [ ] ];

    "nix.conf names the hook by one absolute path" = hosts.nix.settings.build-hook == hook;
    "root and the daemon are told where nix.conf is not heard" =
      hosts.environment.etc."xdg/nix/nix.conf".text == "build-hook = ${hook}\n";
    "no ordinary user can read that file" = hosts.environment.etc."xdg/nix/nix.conf".mode == "0400";
    "builders is not written as empty" = hosts.nix.distributedBuilds && !(hosts.nix.settings ? builders);
    "max-jobs, system-features and trust are not touched" =
      lib.all (key: (hosts.nix.settings.${key} or null) == (inert.nix.settings.${key} or null)) [
        "max-jobs"
        "system-features"
        "trusted-users"
        "allowed-users"
      ];
    "a socket elsewhere is part of the hook's command, in both places" =
      let
        config = machine [ rack ] { services.nix-broker.settings.socket = "/srv/b/other.sock"; };
      in
      config.nix.settings.build-hook == "${hook} --socket /srv/b/other.sock"
      && lib.hasInfix "--socket /srv/b/other.sock" config.environment.etc."xdg/nix/nix.conf".text
      && (unit config).ReadWritePaths == [ "/srv/b" ]
      && (unit hosts).ReadWritePaths == [ ];

    "the user's shell runs commands" = hosts.users.users.nix-broker.shell == "/bin/sh";

    "the service says when it is ready, and is stopped in two steps" =
      lib.getAttrs [ "Type" "KillMode" "Restart" "User" ] (unit hosts) == {
        Type = "notify";
        KillMode = "mixed";
        Restart = "on-failure";
        User = "nix-broker";
      };
    "it starts the broker" = (unit hosts).ExecStart == "${package}/bin/broker serve";
    "the time to stop is longer than the grace" =
      let
        stop = grace: (unit (machine [ rack ] { services.nix-broker.settings.drain-grace = grace; })).TimeoutStopSec;
      in
      (unit hosts).TimeoutStopSec == 660 && map stop [ "0s" "90s" "2h" "010m" ] == [ 60 150 7260 660 ];
    "a change of the configuration restarts it" =
      let
        trigger = config: map toString (service config).restartTriggers;
      in
      trigger hosts == [ (file hosts) ] && trigger hosts != trigger local;

    "with hosts alone, namespaces and devices are closed" =
      (unit hosts).RestrictNamespaces && (unit hosts).PrivateDevices && (unit hosts) ? SystemCallFilter;
    "with a local pool, nothing is in the way of a sandbox" =
      !lib.any (key: unit local ? ${key}) [
        "LockPersonality"
        "PrivateDevices"
        "ProtectClock"
        "ProtectHostname"
        "ProtectKernelLogs"
        "ProtectKernelTunables"
        "ProtectProc"
        "RestrictAddressFamilies"
        "RestrictNamespaces"
        "RestrictSUIDSGID"
        "SystemCallArchitectures"
        "SystemCallFilter"
      ];
    "builds are no threads of the service that are counted" =
      (unit local).TasksMax == "infinity" && !(unit hosts ? TasksMax);
    "both are without capabilities and cannot gain any" =
      lib.all (config: (unit config).NoNewPrivileges && (unit config).CapabilityBoundingSet == "") [
        hosts
        local
      ];
    "a local pool finds nix-daemon and sshd" =
      lib.all (wanted: lib.elem wanted (service local).path) [
        local.nix.package
        local.programs.ssh.package
      ];

    "the file is checked when the system is built" =
      file hosts != file (machine [ rack ] { services.nix-broker.checkConfig = false; });
    "but not when it refers to a file of the machine" =
      let
        pool = rack // {
          hosts = [
            {
              address = "a";
              user = "nix";
              known-hosts-file = "/etc/ssh/known";
            }
          ];
        };
        source = check: file (machine [ pool ] { services.nix-broker.checkConfig = check; });
      in
      source true == source false;

    "distributedBuilds = false is warned of" = says "distributedBuilds" (
      ours (machine [ rack ] { nix.distributedBuilds = false; }).warnings
    );
    "no pool is refused" = says "pool is empty" (failures (machine [ ] { }));
    "two pools of one name are refused" = says "same name" (failures (machine [ rack rack ] { }));
    "a local pool without user namespaces is refused" = says "allowUserNamespaces" (
      failures (machine [ here ] { security.allowUserNamespaces = false; })
    );
    "hosts without user namespaces are fine" = failures (machine [ rack ] { security.allowUserNamespaces = false; }) == [ ];
    "being shut out of the nix-daemon is refused" = says "allowed-users" (
      failures (machine [ rack ] { nix.settings.allowed-users = [ "@wheel" ]; })
    );
    "being let in by name is enough" =
      failures (machine [ rack ] { nix.settings.allowed-users = [ "@wheel" "nix-broker" ]; }) == [ ];
    "a Lix with its own hook protocol is refused" = says "Lix" (failures (machine [ rack ] { nix.package = lix; }));

    "a pool without a name is refused" = fails (file (machine [ { local = { }; } ] { }));
    "a name that is no name is refused" = fails (file (machine [ (here // { name = "a b"; }) ] { }));
    "a grace without a unit is refused" = fails (
      file (machine [ rack ] { services.nix-broker.settings.drain-grace = "600"; })
    );
    "a socket with a blank is refused" = fails (
      (machine [ rack ] { services.nix-broker.settings.socket = "/run/a b"; }).nix.settings.build-hook
    );
    "a relative socket is refused" = fails (
      (machine [ rack ] { services.nix-broker.settings.socket = "broker.sock"; }).nix.settings.build-hook
    );
    "pools that are no list are refused" = fails (
      file (configured {
        services.nix-broker = {
          enable = true;
          settings.pool.rack = rack;
        };
      })
    );
    "keys that the module does not know are passed on" =
      (machine [ (rack // { later = 1; }) ] { services.nix-broker.settings.metrics.port = 1; }).services.nix-broker.settings.metrics.port
      == 1;
  };
in
lib.attrNames (lib.filterAttrs (_: holds: !holds) expectations)
