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
    concatMap
    elem
    getExe
    getExe'
    isAttrs
    isList
    literalExpression
    mkDefault
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    optional
    optionalAttrs
    optionals
    types
    ;

  cfg = config.services.nix-broker;
  nix = config.nix;
  toml = pkgs.formats.toml { };
  defaultSocket = "/run/nix-broker/broker.sock";
  name = "nix-broker";
  credentialsDir = "/run/credentials/nix-broker.service";

  pools = cfg.settings.pool;
  hasLocalPool = any (pool: pool.local != null) pools;
  hasEc2Pool = any (pool: pool.ec2 != null) pools;
  hosts = concatMap (pool: pool.hosts) pools;

  # Lix has another idea of a build hook, and refuses the setting when it checks nix.conf; there the broker is a machine
  # like any other, whose store is served by our endpoint.
  isLix = lib.getName nix.package == "lix";

  # The hook does not read the configuration, so a socket elsewhere is part of the command. Only then: Nix before 2.10
  # takes one path and no words.
  hookProgram = getExe' cfg.package "broker-hook";
  hook = hookProgram + lib.optionalString (cfg.settings.socket != defaultSocket) " --socket ${cfg.settings.socket}";

  # An option that was not set is a key that is not written: the broker has its own defaults.
  written =
    value:
    if isList value then
      map written value
    else if isAttrs value then
      lib.mapAttrs (_: written) (lib.filterAttrs (_: inner: inner != null) value)
    else
      value;
  settings = written (
    cfg.settings
    // {
      pool = map (pool: if pool.hosts == [ ] then removeAttrs pool [ "hosts" ] else pool) pools;
    }
  );

  generated = toml.generate "nix-broker.toml" settings;
  # What is on the machine is not in the build's sandbox, and the broker reads it when it checks.
  canCheck =
    cfg.checkConfig
    && !any (host: host.known-hosts-file != null) hosts
    && pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
  configFile =
    if canCheck then
      pkgs.runCommand "nix-broker.toml" { } ''
        ${getExe cfg.package} check ${generated}
        cp ${generated} $out
      ''
    else
      generated;

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

  # One line of /etc/nix/machines for each pool: what it offers, and as many builds as it may run.
  machine = pool: {
    hostName = "localhost?remote-program=${hookProgram}";
    protocol = "ssh-ng";
    systems = if pool.systems == null then [ pkgs.stdenv.hostPlatform.system ] else pool.systems;
    maxJobs =
      if builtins.isInt pool.slots then
        pool.slots * (if pool.max-builders == null then 1 else pool.max-builders)
      else
        64;
    supportedFeatures = if pool.features == null then [ ] else pool.features;
    mandatoryFeatures = if pool.mandatory-features == null then [ ] else pool.mandatory-features;
  };

  # Typed where a typing error would be found late; what is set is written, what is not is the broker's own default.
  maybe =
    type: example: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit example description;
    };
  strings = types.listOf types.str;
  span = types.strMatching "[0-9]+[a-z]+([[:space:]]*[0-9]+[a-z]+)*";

  host = types.submodule {
    freeformType = toml.type;
    options = {
      address = mkOption {
        type = types.str;
        example = "rack.example.org";
        description = "The machine's name or address.";
      };
      user = mkOption {
        type = types.str;
        example = "nix";
        description = "The user to log in as; must be in `trusted-users` there.";
      };
      port = maybe types.port 2222 "TCP port of its sshd; 22 unless set.";
      host-keys = maybe strings [ "ssh-ed25519 AAAA..." ] "The host keys that it may show, in OpenSSH's form.";
      known-hosts-file = maybe types.path "/etc/ssh/ssh_known_hosts" "A file of known hosts, instead of `host-keys`.";
      identity-file = maybe types.path "${credentialsDir}/rack" ''
        The private key to log in with; the broker's own, {file}`/var/lib/nix-broker/id_ed25519`, unless set.
      '';
    };
  };

  local = types.submodule {
    freeformType = toml.type;
    options = {
      nix-daemon = maybe types.path "/run/current-system/sw/bin/nix-daemon" "The nix-daemon to run as the machine's Nix.";
      sshd = maybe types.path "/run/current-system/sw/bin/sshd" "The sshd to run.";
      sandbox-paths = maybe strings [ "/bin/sh=/bin/busybox" ] "Programs of this machine that builds may see.";
    };
  };

  pool = types.submodule {
    freeformType = toml.type;
    options = {
      name = mkOption {
        type = types.strMatching "[A-Za-z0-9][A-Za-z0-9._-]{0,63}";
        example = "rack";
        description = "The pool's name; also what Nix shows as the machine.";
      };
      systems = maybe strings [ "x86_64-linux" "i686-linux" ] "What its builders build for; this machine's system unless set.";
      features = maybe strings [ "big-parallel" "gccarch-znver3" ] ''
        What its builders offer to `requiredSystemFeatures`.
      '';
      mandatory-features = maybe strings [ "elsewhere" ] "The same, for builders that take only builds that require them.";
      slots = maybe (types.either types.ints.positive (types.enum [ "auto" ])) "auto" ''
        How many builds a builder runs at once; as many as it has processors unless set.
      '';
      min-builders = maybe types.ints.unsigned 0 "Builders that are kept although idle.";
      max-builders = maybe types.ints.positive 4 "Builders at most.";
      idle-timeout = maybe span "10m" "How long a builder without work is kept.";
      surplus-idle-timeout = maybe span "1m" ''
        The same while another builder of the pool has room: a minute for EC2, else as long as idle-timeout.
      '';
      launch-horizon = maybe span "10m" ''
        What waits is to be done in this time by what is launched for it: longer costs less, and "0s" is a slot for each build.
      '';
      max-lifetime = maybe span "12h" "A builder older than this takes no new builds and ends.";
      launch-timeout = maybe span "5m" "From the launch until a builder is ready, at most.";
      priority = maybe types.ints.unsigned 1 "Pools with a higher one come before those with a lower one.";
      decline = maybe (types.listOf (types.enum [ "prefer-local" "fixed-output" "tiny" "short" ])) [ "prefer-local" ] ''
        What this machine builds itself while it has a job free; all four unless set.
      '';
      direct = maybe types.bool false ''
        Whether its builders send to other builders what those need and they have, over their own network; they do unless
        set.
      '';
      hosts = mkOption {
        type = types.listOf host;
        default = [ ];
        description = "Machines that are there.";
      };
      local = mkOption {
        type = types.nullOr local;
        default = null;
        example = { };
        description = "Builders are sets of processes of this machine, each with a store of its own.";
      };
      ec2 = mkOption {
        type = types.nullOr toml.type;
        default = null;
        example = literalExpression ''{ regions = [ "eu-central-1" ]; market = "spot"; }'';
        description = "Builders are EC2 instances. The broker itself checks the keys.";
      };
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

    group = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "wheel";
      description = ''
        The group whose members may ask for the status; everybody when `null`. NixOS leaves a socket alone that is in
        use, so a change takes effect when the service is stopped and started. Builds come through the nix-daemon whoever
        starts them, so this decides nothing about them: `nix.settings.allowed-users` does.
      '';
    };

    credentials = mkOption {
      type = types.attrsOf types.path;
      default = { };
      example = literalExpression ''{ aws = "/run/secrets/aws-credentials"; rack = "/run/secrets/rack-key"; }'';
      description = ''
        Secret files for the service, which systemd hands over so that nobody else can read them: `NAME` is
        {file}`/run/credentials/nix-broker.service/NAME`, for the `identity-file` of a host, or the
        `cache-secret-key-file` of an `ec2` pool. The one called `aws` is what
        the AWS SDK takes as its shared credentials file. An instance profile or SSO needs none.
      '';
    };

    environmentFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/nix-broker.env";
      description = "A file of variables for the service, such as `AWS_ACCESS_KEY_ID`.";
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
            description = "Where hooks and the command line find the broker: systemd listens there, and starts it.";
          };
          drain-grace = mkOption {
            type = types.strMatching "[0-9]+[smh]";
            default = "10m";
            description = "How long running builds may go on when the service is told to stop.";
          };
          metrics = mkOption {
            type = types.nullOr (
              types.submodule {
                freeformType = toml.type;
                options.listen = maybe types.str "127.0.0.1:9119" ''
                  Where Prometheus reads metrics: an address of this machine alone, or the path of a Unix socket.
                '';
              }
            );
            default = null;
            example = {
              listen = "127.0.0.1:9119";
            };
            description = "What programs read; nothing unless set.";
          };
          pool = mkOption {
            type = types.listOf pool;
            default = [ ];
            description = ''
              The pools, in the order in which they are tried: a build goes to the first that it fits. Each has one of
              `local`, `hosts` and `ec2`.
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
          assertion = pools != [ ];
          message = "services.nix-broker: settings.pool is empty; without a pool nothing can be built.";
        }
        {
          assertion = lib.allUnique (map (pool: pool.name) pools);
          message = "services.nix-broker: two pools of settings.pool have the same name.";
        }
        {
          assertion = lib.all (
            pool: lib.length (lib.filter (has: has) [ (pool.local != null) (pool.hosts != [ ]) (pool.ec2 != null) ]) == 1
          ) pools;
          message = ''
            services.nix-broker: each pool of settings.pool has exactly one of `local = { }`, `hosts = [ ... ]` and
            `ec2 = { ... }`, which says where its builders come from.
          '';
        }
        {
          assertion = !hasLocalPool || config.security.allowUserNamespaces;
          message = ''
            services.nix-broker: a pool with `local` runs builds in a sandbox, which needs security.allowUserNamespaces.
          '';
        }
        {
          assertion = nix.distributedBuilds;
          message = ''
            services.nix-broker: nix.distributedBuilds is false, so nix.conf says `builders =`, which tells every hook to
            build nothing elsewhere: the broker would never get a build. Remove that line, or disable services.nix-broker.
          '';
        }
        {
          assertion = !isLix || cfg.settings.socket == defaultSocket;
          message = ''
            services.nix-broker: Lix reaches the broker through /etc/nix/machines, where the socket cannot be named; leave
            settings.socket alone.
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
      users.groups = {
        ${name} = { };
      }
      // optionalAttrs (cfg.group != null) { ${cfg.group} = { }; };

      environment.etc."nix-broker/config.toml".source = configFile;
      environment.systemPackages = [ cfg.package ];
    }

    {
      # On a default NixOS `builders` is written as empty, which means "build nothing elsewhere" to every hook.
      nix.distributedBuilds = mkDefault true;
      # Builders have a better line to the caches than this machine has to the builders.
      nix.settings.builders-use-substitutes = mkDefault true;
    }

    (mkIf isLix { nix.buildMachines = map machine pools; })

    (mkIf (!isLix) {
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
    })

    {
      # systemd itself listens, so a hook that comes before the broker is up waits for it.
      # Whoever can reach the socket may ask for the status; the broker looks at who asks for more. Root is always let
      # in, and so is every hook of the nix-daemon.
      systemd.sockets.nix-broker = {
        description = "Socket of the broker of Nix builds";
        wantedBy = [ "sockets.target" ];
        unitConfig = {
          # What a person has stopped must not be started again by the next build. A restart of the service makes the
          # socket anew, as with PartOf: hooks come back to it.
          StopPropagatedFrom = "nix-broker.service";
          # It starts as often as the service, whose count is the one that counts: at a limit of its own the service
          # would come back without it.
          StartLimitIntervalSec = 0;
        };
        listenStreams = [ cfg.settings.socket ];
        socketConfig = {
          SocketMode = if cfg.group == null then "0666" else "0660";
          RemoveOnStop = true;
        }
        // optionalAttrs (cfg.group != null) { SocketGroup = cfg.group; };
      };

      systemd.services.nix-broker = {
        description = "Broker of Nix builds";
        wantedBy = [ "multi-user.target" ];
        # Not `requires`: a crash ends the socket with the service, and with that the socket's end would be the service's
        # for good.
        wants = [
          "nix-broker.socket"
          "nix-daemon.socket"
        ]
        ++ optional hasEc2Pool "network-online.target";
        after = [
          "nix-broker.socket"
          "nix-daemon.socket"
          "network.target"
        ]
        ++ optional hasEc2Pool "network-online.target";
        restartTriggers = [ configFile ];
        # A stop waits for the builds that run. In one step with the start, after the new system is in place, nothing
        # else of the switch has to wait for it without a broker.
        stopIfChanged = false;
        # What a `local` pool starts: an sshd and a nix-daemon for each machine.
        path = optionals hasLocalPool [
          nix.package
          config.programs.ssh.package
        ];
        environment = {
          HOME = "/var/lib/nix-broker";
        }
        // optionalAttrs (cfg.credentials ? aws) { AWS_SHARED_CREDENTIALS_FILE = "${credentialsDir}/aws"; };

        serviceConfig = mkMerge [
          {
            Type = "notify";
            ExecStart = "${getExe cfg.package} serve";
            User = name;
            Group = name;
            LoadCredential = lib.mapAttrsToList (credential: file: "${credential}:${file}") cfg.credentials;
            # Keys are in here.
            StateDirectory = "nix-broker";
            StateDirectoryMode = "0700";
            UMask = if hasLocalPool then "0022" else "0077";
            EnvironmentFile = optional (cfg.environmentFile != null) cfg.environmentFile;
            # What is put elsewhere must be there, and belong to the user.
            ReadWritePaths = optional (cfg.settings ? state-dir) cfg.settings.state-dir;

            Restart = "on-failure";
            # After a crash systemd closes the socket with the service, so this is how long hooks find nobody.
            RestartSec = "500ms";
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
            PrivateMounts = true;
            KeyringMode = "private";
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
            ProcSubset = "pid";
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
              "~@privileged @resources"
              # The limit on open files: every waiting hook has one.
              "setrlimit prlimit64"
            ];
          })
        ];
      };
    }
  ]);
}
