# What services.nix-broker makes of configurations, right ones and wrong ones; evaluated, nothing is built.
#
# The value is the list of what is not as it should be, empty when all is well. `evaluate` makes a configuration of a
# module: with the stand-ins of ./stand-in in a second, with the real NixOS where there is a nixpkgs (see ./default.nix).
{
  lib,
  # Of the machines.
  system,
  evaluate,
  # What `evaluate` gives as the package.
  package,
  # A Nix that NixOS takes for Lix.
  lix,
}:

let
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
    evaluate {
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
  socket = config: config.systemd.sockets.nix-broker;
  inert = evaluate { };
  file = config: toString config.environment.etc."nix-broker/config.toml".source;
  fails = text: !(builtins.tryEval (builtins.stringLength text)).success;
  says = word: messages: lib.length messages == 1 && lib.hasInfix word (lib.head messages);

  hosts = machine [ rack ] { };
  local = machine [ rack here ] { };
  hook = "${package}/bin/broker-hook";

  # Configurations that must not be built; each has one complaint, whose text is in the snapshot.
  refused = {
    "nix is not enabled" = machine [ rack ] { nix.enable = false; };
    "no pool" = machine [ ] { };
    "two pools of one name" = machine [ rack rack ] { };
    "a pool with two providers" = machine [ (rack // { local = { }; }) ] { };
    "a pool without a provider" = machine [ { name = "nothing"; } ] { };
    "a local pool without user namespaces" = machine [ here ] { security.allowUserNamespaces = false; };
    "distributedBuilds is false" = machine [ rack ] { nix.distributedBuilds = false; };
    "shut out of the nix-daemon" = machine [ rack ] { nix.settings.allowed-users = [ "@wheel" ]; };
    "on Lix a socket elsewhere" = machine [ rack ] {
      nix.package = lix;
      services.nix-broker.settings.socket = "/srv/b.sock";
    };
  };

  expectations = {
    "what must not be built is refused, each for one reason" = lib.all (config: lib.length (failures config) == 1) (
      lib.attrValues refused
    );

    "switched off it leaves everything alone" =
      !(inert.systemd.services ? nix-broker)
      && !(inert.systemd.sockets ? nix-broker)
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
      && (socket config).listenStreams == [ "/srv/b/other.sock" ]
      && (socket hosts).listenStreams == [ "/run/nix-broker/broker.sock" ];
    "systemd listens before the broker runs, and the broker needs it" =
      (socket hosts).wantedBy == [ "sockets.target" ]
      && lib.elem "nix-broker.socket" (service hosts).wants
      && !(lib.elem "nix-broker.socket" (service hosts).requires or [ ])
      && lib.elem "nix-broker.socket" (service hosts).after;
    # With PartOf a restart would hang up on the hooks that wait; with neither, the next hook would undo a stop.
    "a stop of the service stops the socket, and a restart does not" =
      (socket hosts).unitConfig.StopPropagatedFrom == "nix-broker.service"
      && (socket hosts).partOf or [ ] == [ ]
      && (socket hosts).bindsTo or [ ] == [ ];
    "a service that may start again gets its socket" = (socket hosts).unitConfig.StartLimitIntervalSec == 0;
    # A runtime directory would be removed under the socket with every stop.
    "the socket's directory is not the service's" = !(unit hosts ? RuntimeDirectory);

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

    "hosts without user namespaces are fine" = failures (machine [ rack ] { security.allowUserNamespaces = false; }) == [ ];
    "being let in by name is enough" =
      failures (machine [ rack ] { nix.settings.allowed-users = [ "@wheel" "nix-broker" ]; }) == [ ];

    "on Lix the broker is a machine, and no hook is set" =
      let
        config = machine [ (rack // { slots = 4; max-builders = 3; }) here ] { nix.package = lix; };
      in
      failures config == [ ]
      && !(config.nix.settings ? build-hook)
      && !(config.environment.etc ? "xdg/nix/nix.conf")
      && config.environment.etc."nix/machines".text == ''
        ssh-ng://localhost?remote-program=${hook} ${system} - 12 1 big-parallel - -
        ssh-ng://localhost?remote-program=${hook} ${system} - 64 1 - - -
      '';
    "on Nix nothing is added to the machines" = !(hosts.environment.etc ? "nix/machines");

    "builders use substitutes, unless the user says no" =
      hosts.nix.settings.builders-use-substitutes
      && !(machine [ rack ] { nix.settings.builders-use-substitutes = false; }).nix.settings.builders-use-substitutes;

    "everybody may ask for the status, or a group" =
      let
        config = machine [ rack ] { services.nix-broker.group = "operators"; };
        access = config: removeAttrs (socket config).socketConfig [ "RemoveOnStop" ];
      in
      access hosts == { SocketMode = "0666"; }
      && access config == { SocketMode = "0660"; SocketGroup = "operators"; }
      && (unit config).Group == "nix-broker"
      && config.users.groups ? operators
      && config.users.users.nix-broker.group == "nix-broker";

    "secrets are handed over by systemd, and AWS is told where" =
      let
        config = machine [ rack ] {
          services.nix-broker = {
            credentials.aws = "/run/secrets/aws";
            credentials.rack = "/run/secrets/rack";
            environmentFile = "/run/secrets/env";
          };
        };
      in
      (unit config).LoadCredential == [ "aws:/run/secrets/aws" "rack:/run/secrets/rack" ]
      && (unit config).EnvironmentFile == [ "/run/secrets/env" ]
      && (service config).environment.AWS_SHARED_CREDENTIALS_FILE == "/run/credentials/nix-broker.service/aws"
      && !((service hosts).environment ? AWS_SHARED_CREDENTIALS_FILE);
    "an EC2 pool's keys are passed on" =
      (lib.head (machine [ { name = "cloud"; ec2.regions = [ "eu-central-1" ]; } ] { }).services.nix-broker.settings.pool).ec2
      == { regions = [ "eu-central-1" ]; };

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
      file (evaluate {
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

  # One line for each value: what a change of an option, a default, a text or the hardening looks like in review.
  lines =
    path: value:
    if lib.isAttrs value && value != { } && !(value ? outPath) then
      lib.concatLists (lib.mapAttrsToList (name: lines "${path}.${name}") value)
    else if lib.isList value && value != [ ] then
      lib.concatLists (lib.genList (i: lines "${path}[${toString i}]" (lib.elemAt value i)) (lib.length value))
    else
      [ "${path} = ${builtins.toJSON value}" ];
in
{
  wrong = lib.attrNames (lib.filterAttrs (_: holds: !holds) expectations);

  snapshot = lib.concatMapStringsSep "" (line: line + "\n") (
    lines "options" (
      removeAttrs (machine [ (here // { hosts = [ { address = "a"; user = "u"; } ]; }) ] { }).services.nix-broker [ "package" ]
    )
    ++ lines "refused" (lib.mapAttrs (_: failures) refused)
    ++ lines "socket" (socket hosts).socketConfig
    ++ lines "hosts" (unit hosts)
    ++ lines "local" (unit local)
  );
}
