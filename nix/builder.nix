# `services.nix-broker-builder`: a machine that builds for a broker, and ends itself when nobody needs it.
#
# Owns what is right for every such machine: the dead-man, who may log in, what Nix offers. The image that it boots from,
# and the cloud it boots in, are the business of ./image.nix.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib)
    mkEnableOption
    mkForce
    mkIf
    mkOption
    types
    ;
  cfg = config.services.nix-broker-builder;

  seconds =
    default: description:
    mkOption {
      type = types.ints.positive;
      inherit default description;
    };

  # The same file that the broker gives to machines without this module.
  deadMan = ../src/provider/ec2/boot/dead-man.sh;
  setup = ./builder/setup.sh;
  uploader = pkgs.writeScript "cache.sh" (builtins.readFile ../src/provider/ec2/boot/cache.sh);
  sshd = config.services.openssh.package or config.programs.ssh.package;
in
{
  options.services.nix-broker-builder = {
    enable = mkEnableOption "a machine that builds for nix-broker and ends itself when nobody needs it";

    limits = {
      lease = seconds 900 ''
        Without a word from the broker for this long, in seconds, and with nothing building, the machine powers off. What
        the user-data says wins, here and below.
      '';
      lease-busy = seconds 3600 "The same while something builds: a suspended laptop may come back.";
      idle = seconds 1200 "With nothing to build for this long it powers off, however often the broker calls.";
      hard = seconds 90000 ''
        After this long it powers off, whatever happens; more than the `max-lifetime` of the pool.
      '';
    };

    buildUsers = mkOption {
      type = types.ints.positive;
      default = 128;
      description = "Build users: as many builds at once at most.";
    };

    minFree = mkOption {
      type = types.ints.positive;
      default = 5;
      description = ''
        With less than this left on the store's disk, in GiB, Nix deletes what no build needs. Whatever a running build, or
        the broker on behalf of one that waits, refers to is protected by a temporary root.
      '';
    };

    cache = {
      url = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "s3://my-cache?region=eu-central-1";
        description = ''
          A binary cache next to the builders, which takes what they build, for those that come after them. For a machine
          that is launched by an `ec2` pool with `cache`, the user-data says all of this.
        '';
      };
      publicKey = mkOption {
        type = types.str;
        example = "my-cache-1:AAAA...";
        description = "Whose signatures are trusted there.";
      };
      secretKeyFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/run/secrets/cache-key";
        description = "The key to sign with, a file of the machine; without it the machine only takes.";
      };
    };

    preload = mkOption {
      type = types.listOf types.package;
      default = with pkgs; [
        stdenv
        stdenvNoCC
        cacert
        curl
        git
        gnumake
        patchelf
        perl
        pkg-config
        python3
        unzip
        which
      ];
      defaultText = lib.literalExpression "[ pkgs.stdenv and what nearly every build needs ]";
      description = "What is in the store from the start, so that no first build has to wait for it.";
    };
  };

  config = mkIf cfg.enable {
    # The dead-man: units of the image itself, so that they run whether or not any user-data arrives. Without default
    # dependencies they start as early as there is a /run, and go on ticking while the machine shuts down.
    environment.etc."nix-broker/limits".text = lib.concatStringsSep "" (
      lib.mapAttrsToList (name: limit: "${name}=${toString limit}\n") cfg.limits
    );
    systemd.services.nix-broker-dead-man = {
      description = "End this machine when nobody needs it";
      unitConfig.DefaultDependencies = false;
      path = with pkgs; [
        coreutils
        gnugrep
        gnused
        systemd
      ];
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${pkgs.bash}/bin/sh ${deadMan}";
      };
    };
    systemd.timers.nix-broker-dead-man = {
      description = "Look whether somebody needs this machine";
      wantedBy = [ "sysinit.target" ];
      unitConfig.DefaultDependencies = false;
      timerConfig = {
        OnBootSec = "30s";
        OnUnitActiveSec = "30s";
        AccuracySec = "5s";
      };
    };
    systemd.services.nix-broker-hard-limit = {
      description = "End this machine now";
      unitConfig.DefaultDependencies = false;
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${pkgs.systemd}/bin/systemctl poweroff --force --force";
      };
    };
    systemd.timers.nix-broker-hard-limit = {
      description = "The most that this machine may live";
      wantedBy = [ "sysinit.target" ];
      unitConfig.DefaultDependencies = false;
      # A moment later than a look of the dead-man finds out, so that there is time for an orderly end.
      timerConfig = {
        OnBootSec = "${toString (cfg.limits.hard + 120)}s";
        AccuracySec = "5s";
      };
    };

    # Who may log in and what is offered: from a few lines of user-data.
    systemd.services.nix-broker-setup = {
      description = "Set this builder up as its user-data says";
      wantedBy = [ "multi-user.target" ];
      wants = [ "fetch-ec2-metadata.service" ];
      after = [
        "fetch-ec2-metadata.service"
        "apply-ec2-data.service"
      ];
      before = [ "sshd.service" ];
      path = with pkgs; [
        coreutils
        gnugrep
        gnused
        gawk
        iproute2
        iptables
        shadow
        systemd
        sshd
        util-linux
      ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${pkgs.bash}/bin/sh ${setup} /etc/ec2-metadata/user-data";
      };
    };

    # What was built goes to the cache from a queue, so that no build waits for it.
    systemd.services.nix-broker-cache = mkIf (cfg.cache.url != null && cfg.cache.secretKeyFile != null) {
      description = "Put what was built into the cache";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      path = [
        pkgs.coreutils
        config.nix.package
      ];
      preStart = ''
        mkdir -p /run/nix-broker
        echo ${lib.escapeShellArg cfg.cache.url} >/run/nix-broker/cache-url
        ln -sfn ${lib.escapeShellArg cfg.cache.secretKeyFile} /run/nix-broker/cache-key
      '';
      serviceConfig = {
        ExecStart = "${uploader} upload";
        Restart = "always";
        RestartSec = 10;
        IOSchedulingClass = "idle";
      };
    };

    # Nothing else listens: sshd, for the broker's key alone.
    networking.firewall = {
      enable = true;
      allowedTCPPorts = mkForce [ 22 ];
      allowedUDPPorts = mkForce [ ];
      # User-data holds the host key, and builds with network access could read it. Those run as other users.
      extraCommands = ''
        iptables -w -C OUTPUT -d 169.254.169.254/32 -m owner ! --uid-owner 0 -j REJECT 2>/dev/null ||
          iptables -w -I OUTPUT -d 169.254.169.254/32 -m owner ! --uid-owner 0 -j REJECT
        ip6tables -w -C OUTPUT -d fd00:ec2::254/128 -m owner ! --uid-owner 0 -j REJECT 2>/dev/null ||
          ip6tables -w -I OUTPUT -d fd00:ec2::254/128 -m owner ! --uid-owner 0 -j REJECT
      '';
    };
    services.openssh = {
      enable = true;
      authorizedKeysFiles = mkForce [ "/root/.ssh/authorized_keys" ];
      hostKeys = mkForce [
        {
          type = "ed25519";
          path = "/etc/ssh/ssh_host_ed25519_key";
        }
      ];
      settings = {
        PermitRootLogin = mkForce "prohibit-password";
        PasswordAuthentication = false;
        KbdInteractiveAuthentication = false;
        X11Forwarding = false;
        UseDns = false;
        # Every build is a channel, and many come at once over few connections.
        MaxSessions = 1000;
        MaxStartups = "1000";
      }
      // lib.optionalAttrs (lib.versionAtLeast (lib.getVersion config.programs.ssh.package) "9.8") {
        # A broker that reconnects often is no attacker; sshd would shut it out for minutes.
        PerSourcePenalties = false;
      };
    };
    # Nobody but root logs in, and only with the key.
    users.mutableUsers = mkForce true; # a script as user-data may add build users

    # Trusted is root, as whom the broker comes. A plain build machine: it asks nobody else.
    nix = {
      distributedBuilds = mkForce false;
      nrBuildUsers = cfg.buildUsers;
      gc.automatic = mkForce false;
      settings = {
        trusted-users = mkForce [ "root" ];
        allowed-users = mkForce [ "root" ];
        sandbox = mkForce true;
        # What it may claim is for the user-data to say: it knows the machine that this image was started on.
        system-features = mkForce [ ];
        # A cache that does not answer must not be the end of a build.
        fallback = true;
        connect-timeout = 10;
        min-free = cfg.minFree * 1024 * 1024 * 1024;
        max-free = 4 * cfg.minFree * 1024 * 1024 * 1024;
        experimental-features = [
          "nix-command"
          "flakes"
        ];
      }
      // lib.optionalAttrs (cfg.cache.url != null) {
        extra-substituters = [ cfg.cache.url ];
        extra-trusted-public-keys = [ cfg.cache.publicKey ];
      }
      // lib.optionalAttrs (cfg.cache.url != null && cfg.cache.secretKeyFile != null) {
        post-build-hook = uploader;
      };
      # Last, where it wins.
      extraOptions = "!include /run/nix-broker/nix.conf";
    };
    # Also a root for the garbage collector.
    system.extraDependencies = cfg.preload;

    # Small, and quick to boot.
    documentation.enable = mkForce false;
    boot.loader.timeout = mkForce 0;
  };
}
