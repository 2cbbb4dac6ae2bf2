# `services.nix-broker`: the broker as a service, and every Nix on this machine asking it.
#
# Owns the unit, its user and the Nix settings that lead to the hook. What the keys of `settings` mean is the broker's
# own business: it checks its file itself, here at build time and again when it starts.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib)
    any
    elem
    getExe
    getExe'
    literalExpression
    mkDefault
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    optional
    optionalString
    optionals
    types
    ;

  cfg = config.services.nix-broker;
  nix = config.nix;
  toml = pkgs.formats.toml { };
  defaultSocket = "/run/nix-broker/broker.sock";
  name = "nix-broker";

  hasLocalPool = any (pool: pool ? local) cfg.settings.pool;
  hosts = lib.concatMap (pool: pool.hosts or [ ]) cfg.settings.pool;

  # The hook does not read the configuration, so a socket elsewhere is part of the command. Only then: Nix before 2.10
  # takes one path and no words.
  hook =
    getExe' cfg.package "broker-hook"
    + optionalString (cfg.settings.socket != defaultSocket) " --socket ${cfg.settings.socket}";

  written = toml.generate "nix-broker.toml" cfg.settings;
  # A file of known hosts is on the machine, not in the build's sandbox, and the broker reads it when it checks.
  canCheck =
    cfg.checkConfig
    && !any (host: host ? known-hosts-file) hosts
    && pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
  configFile =
    if canCheck then
      pkgs.runCommand "nix-broker.toml" { } ''
        ${getExe cfg.package} check ${written}
        cp ${written} $out
      ''
    else
      written;

  graceSeconds =
    let
      parts = builtins.match "([0-9]+)([smh])" cfg.settings.drain-grace;
      unit = {
        s = 1;
        m = 60;
        h = 3600;
      };
    in
    lib.toIntBase10 (builtins.elemAt parts 0) * unit.${builtins.elemAt parts 1};

  pool = types.submodule {
    freeformType = toml.type;
    options.name = mkOption {
      type = types.strMatching "[A-Za-z0-9][A-Za-z0-9._-]{0,63}";
      example = "rack";
      description = "The pool's name; also what Nix shows as the machine.";
    };
  };
in
{
  options.services.nix-broker = {
    enable = mkEnableOption "nix-broker, which builds on machines of its pools whatever fits them";

    package = mkOption {
      type = types.package;
      default = pkgs.nix-broker or (throw "services.nix-broker.package is not set, and there is no pkgs.nix-broker");
      defaultText = literalExpression "pkgs.nix-broker";
      description = "The package with `broker` and `broker-hook`.";
    };

    checkConfig = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether `broker check` reads the configuration when the system is built. It cannot when a host has a
        `known-hosts-file`, or when the system is built for another processor.
      '';
    };

    settings = mkOption {
      description = "What is in {file}`/etc/nix-broker/config.toml`. `broker check --help` tells more.";
      example = literalExpression ''
        {
          pool = [
            {
              name = "rack";
              systems = [ "x86_64-linux" ];
              features = [ "big-parallel" ];
              hosts = [
                {
                  address = "rack.example.org";
                  user = "nix";
                  host-keys = [ "ssh-ed25519 AAAA..." ];
                }
              ];
            }
          ];
        }
      '';
      type = types.submodule {
        freeformType = toml.type;
        options = {
          socket = mkOption {
            # Nix splits the hook's command at blanks; there is no way to quote one.
            type = types.strMatching "/[^[:space:]]*";
            default = defaultSocket;
            description = ''
              Where hooks and the command line find the broker. A directory other than {file}`/run/nix-broker` must
              exist, and the user `nix-broker` must be able to write to it.
            '';
          };
          drain-grace = mkOption {
            type = types.strMatching "[0-9]+[smh]";
            default = "10m";
            description = "How long running builds may go on when the service is told to stop.";
          };
          pool = mkOption {
            type = types.listOf pool;
            default = [ ];
            description = ''
              The pools, in the order in which they are tried: a build goes to the first that it fits. Each has a
              table `local` (processes of this machine) or a list `hosts` (machines that are there).
            '';
          };
        };
      };
    };
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [
        {
          assertion = nix.enable;
          message = "services.nix-broker: there is nothing to serve without Nix; set nix.enable.";
        }
        {
          assertion = cfg.settings.pool != [ ];
          message = "services.nix-broker: settings.pool is empty; without a pool nothing can be built.";
        }
        {
          assertion = lib.allUnique (map (pool: pool.name) cfg.settings.pool);
          message = "services.nix-broker: two pools of settings.pool have the same name.";
        }
        {
          assertion = !hasLocalPool || config.security.allowUserNamespaces;
          message = ''
            services.nix-broker: a pool with `local` runs builds in a sandbox, which needs security.allowUserNamespaces.
          '';
        }
        {
          # The hook speaks through pipes as Nix does; this Lix speaks Cap'n Proto to its hook, and would fail each build.
          assertion = !(lib.getName nix.package == "lix" && lib.versionAtLeast (lib.getVersion nix.package) "2.94pre");
          message = ''
            services.nix-broker: Lix 2.94 and newer has another build-hook protocol. Use the broker as a store in
            nix.buildMachines instead (`broker-hook --help`), or an older Lix, or Nix.
          '';
        }
        {
          # Reading what a path refers to is all that the broker asks of the daemon, so it is not made a trusted user.
          assertion =
            let
              may = nix.settings.allowed-users ++ nix.settings.trusted-users;
            in
            any (user: elem user may) [
              "*"
              name
              "@${name}"
            ];
          message = ''
            services.nix-broker: the broker asks the nix-daemon about inputs; add "${name}" to nix.settings.allowed-users.
          '';
        }
      ];

      warnings = optional (!nix.distributedBuilds) ''
        services.nix-broker: nix.distributedBuilds is false, so nix.conf says `builders =`, which tells every hook to
        build nothing elsewhere: the broker will never get a build. Remove that line, or disable services.nix-broker.
      '';

      users.users.${name} = {
        isSystemUser = true;
        group = name;
        description = "nix-broker";
        home = "/var/lib/nix-broker";
        # A machine of a `local` pool is reached through an sshd that runs as this user, and sshd runs each command with
        # the user's shell; with nologin no such machine would ever become ready. No password and no authorized_keys of
        # the system's sshd: nobody can log in with it.
        shell = "/bin/sh";
      };
      users.groups.${name} = { };

      environment.etc."nix-broker/config.toml".source = configFile;
      environment.systemPackages = [ cfg.package ];
    }

    {
      # On a default NixOS `builders` is written as empty, which means "build nothing elsewhere" to every hook.
      nix.distributedBuilds = mkDefault true;

      # Enough for Nix up to 2.24 and from 2.34 on, whoever starts it. From 2.25 to 2.33 Nix overwrites this one setting
      # after it has read nix.conf, for root and for users alike.
      nix.settings.build-hook = hook;

      # What those versions do honour is a file of the user's own layer, of which /etc/xdg is a part: it is read by the
      # nix-daemon (for the users' builds) and by root's Nix without the daemon, `sudo nixos-rebuild` most of all.
      # An ordinary user's Nix would read it too, send it to the daemon, and print a warning about a restricted setting
      # with every command. So it is root's to read: Nix passes over a file that it cannot open, without a word. Tried
      # with 2.8, 2.26 and 2.34, as root, as root through the daemon and as a user.
      #
      # Not done, and why: NIX_CONFIG in the nix-daemon's unit does not reach root without the daemon; in the
      # session's environment it brings the warning; NIX_REMOTE=daemon for root changes what root's Nix does and
      # fails where no daemon runs (nixos-enter); /root/.config/nix/nix.conf is root's own, and would outlive this
      # module with a path that is gone.
      environment.etc."xdg/nix/nix.conf" = {
        text = "build-hook = ${hook}\n";
        mode = "0400";
      };
    }

    {
      systemd.services.nix-broker = {
        description = "Broker of Nix builds";
        wantedBy = [ "multi-user.target" ];
        wants = [ "nix-daemon.socket" ];
        after = [
          "nix-daemon.socket"
          "network.target"
        ];
        restartTriggers = [ configFile ];
        # A stop waits for the builds that run. In one step with the start, after the new system is in place, nothing
        # else of the switch has to wait for it without a broker.
        stopIfChanged = false;
        # What a `local` pool starts: an sshd and a nix-daemon for each machine.
        path = optionals hasLocalPool [
          nix.package
          config.programs.ssh.package
        ];
        environment.HOME = "/var/lib/nix-broker";

        serviceConfig = mkMerge [
          {
            Type = "notify";
            ExecStart = "${getExe cfg.package} serve";
            User = name;
            Group = name;
            # Everybody may connect: the hook of a single-user store runs as its user, and the broker looks at who asks.
            RuntimeDirectory = "nix-broker";
            RuntimeDirectoryMode = "0755";
            # Keys are in here.
            StateDirectory = "nix-broker";
            StateDirectoryMode = "0700";
            UMask = "0022";
            # What is put elsewhere must be there, and belong to the user.
            ReadWritePaths =
              optional (dirOf cfg.settings.socket != "/run/nix-broker") (dirOf cfg.settings.socket)
              ++ optional (cfg.settings ? state-dir) cfg.settings.state-dir;

            Restart = "on-failure";
            RestartSec = 2;
            # Before it is ready it ends what an earlier broker left running.
            TimeoutStartSec = "5min";
            # SIGTERM is for the broker alone: its builders must outlive it by the builds that still run, and it ends
            # them itself. What is there after the time-out (the grace, and a minute to end machines) gets SIGKILL, the
            # whole group of it, so nothing stays.
            KillMode = "mixed";
            TimeoutStopSec = graceSeconds + 60;
            # One build that eats the memory ends itself, not the broker and every other build.
            OOMPolicy = "continue";

            # Holds for both kinds of pool; none of it is in the way of a sandbox made by a child.
            NoNewPrivileges = true;
            CapabilityBoundingSet = "";
            ProtectSystem = "strict";
            ProtectHome = true;
            PrivateTmp = true;
            ProtectKernelModules = true;
            ProtectControlGroups = true;
            RemoveIPC = true;
          }

          (mkIf hasLocalPool {
            # Builds run below this unit. Their sandbox needs namespaces, mounts and its own host name, and a /proc of
            # its own, which the kernel refuses to a process whose view of /proc has holes: so neither the list below
            # nor any part of it. ProtectClock would take away /dev/kvm.
            TasksMax = "infinity";
          })

          (mkIf (!hasLocalPool) {
            LockPersonality = true;
            MemoryDenyWriteExecute = true;
            PrivateDevices = true;
            ProtectClock = true;
            ProtectHostname = true;
            ProtectKernelLogs = true;
            ProtectKernelTunables = true;
            ProtectProc = "invisible";
            RestrictAddressFamilies = [
              "AF_UNIX"
              "AF_INET"
              "AF_INET6"
              # How the resolver learns which addresses this machine has.
              "AF_NETLINK"
            ];
            RestrictNamespaces = true;
            RestrictRealtime = true;
            RestrictSUIDSGID = true;
            SystemCallArchitectures = "native";
            SystemCallErrorNumber = "EPERM";
            SystemCallFilter = [
              "@system-service"
              "~@privileged"
            ];
          })
        ];
      };
    }
  ]);
}
