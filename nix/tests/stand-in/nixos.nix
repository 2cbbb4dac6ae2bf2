# The part of NixOS that our own modules touch: its options, and what NixOS makes of them that our tests look at, which
# is nix.conf, /etc/nix/machines and the text of units.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  any = option types.anything { };
  strings = types.listOf types.str;
  setting = types.oneOf [
    types.bool
    types.int
    types.str
    strings
  ];

  # nix.conf as NixOS writes it: one line for a setting, lists with blanks, nothing for null, `extra-` last.
  confValue =
    value:
    if value == null then
      ""
    else if builtins.isBool value then
      (if value then "true" else "false")
    else
      toString value;
  confLines =
    isExtra:
    lib.mapAttrsToList (key: value: "${key} = ${confValue value}") (
      lib.filterAttrs (key: _: lib.hasPrefix "extra-" key == isExtra) config.nix.settings
    );

  # A section of a unit: a list is one line for each element.
  section =
    name: values:
    let
      text = value: if builtins.isBool value then (if value then "true" else "false") else toString value;
      line =
        key: value:
        if builtins.isList value then lib.concatMapStringsSep "" (one: "${key}=${text one}\n") value else "${key}=${text value}\n";
    in
    lib.optionalString (values != { }) (
      "[${name}]\n" + lib.concatStringsSep "" (lib.mapAttrsToList line values) + "\n"
    );
  environment = lib.mapAttrsToList (name: value: ''"${name}=${toString value}"'');
  joined = key: values: lib.optionalAttrs (values != [ ]) { ${key} = lib.concatStringsSep " " values; };
  unitOf =
    unit:
    lib.optionalAttrs (unit ? description) { Description = unit.description; }
    // joined "After" (unit.after or [ ])
    // joined "Before" (unit.before or [ ])
    // joined "Wants" (unit.wants or [ ])
    // joined "Requires" (unit.requires or [ ])
    // (unit.unitConfig or { });
  timerText = timer: section "Unit" (unitOf timer) + section "Timer" (timer.timerConfig or { });
  serviceText =
    service:
    section "Unit" (unitOf service)
    + section "Service" (
      lib.optionalAttrs (service ? script) { ExecStart = "/script"; }
      // service.serviceConfig
      // lib.optionalAttrs (service.environment or { } != { }) { Environment = environment service.environment; }
    );
in
{
  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = option strings [ ];
    amazonImage = any;
    boot = any;
    documentation = any;

    environment.etc = any;
    environment.systemPackages = option (types.listOf types.anything) [ ];
    ec2 = any;
    fileSystems = any;
    networking = any;
    nix.buildMachines = option (types.listOf types.anything) [ ];
    nix.distributedBuilds = option types.bool false;
    nix.enable = option types.bool true;
    nix.extraOptions = option types.lines "";
    nix.gc = any;
    nix.package = option types.package pkgs.nix;
    nix.nrBuildUsers = option types.int 32;
    nix.settings = mkOption {
      type = types.submodule {
        freeformType = types.attrsOf types.anything;
        options.allowed-users = option strings [ "*" ];
        options.trusted-users = option strings [ "root" ];
        options.max-jobs = option (types.either types.int (types.enum [ "auto" ])) "auto";
        options.sandbox = option (types.either types.bool (types.enum [ "relaxed" ])) true;
        options.substituters = option strings [ ];
        options.system-features = option strings [
          "nixos-test"
          "benchmark"
          "big-parallel"
          "kvm"
        ];
      };
      default = { };
    };
    nixpkgs = any;
    programs.ssh.package = option types.package pkgs.openssh;
    security.allowUserNamespaces = option types.bool true;
    services.amazon-ssm-agent = any;
    services.openssh = any;
    system.build = any;
    system.extraDependencies = option (types.listOf types.anything) [ ];
    system.nixos.release = option types.str "26.05";
    system.stateVersion = option types.str "26.05";
    systemd.services = mkOption {
      type = types.attrsOf (
        types.submodule {
          # As NixOS has it: lists of a setting are joined, other values must not contradict each other.
          freeformType = types.attrsOf types.anything;
          options.serviceConfig = option (types.attrsOf setting) { };
        }
      );
      default = { };
    };
    systemd.sockets = any;
    systemd.timers = any;
    systemd.units = any;
    users.groups = any;
    users.mutableUsers = option types.bool true;
    users.users = any;
    virtualisation = any;
  };

  config = {
    nix.settings = lib.mkMerge [
      { sandbox-fallback = false; }
      (lib.mkIf (!config.nix.distributedBuilds) { builders = null; })
    ];
    environment.etc."nix/nix.conf".source = pkgs.writeText "nix.conf" (
      lib.concatMapStringsSep "" (line: line + "\n") (confLines false ++ confLines true ++ [ config.nix.extraOptions ])
    );
    environment.etc."nix/machines" = lib.mkIf (config.nix.buildMachines != [ ]) {
      text = lib.concatMapStringsSep "" (
        machine:
        let
          list = values: if values == [ ] then "-" else lib.concatStringsSep "," values;
        in
        "${machine.protocol}://${machine.hostName} ${list machine.systems} - ${toString machine.maxJobs} 1 "
        + "${list (machine.supportedFeatures ++ machine.mandatoryFeatures)} ${list machine.mandatoryFeatures} -\n"
      ) config.nix.buildMachines;
    };
    systemd.services.nix-daemon.environment.CURL_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt";
    systemd.units =
      lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.service" { text = serviceText unit; }) config.systemd.services
      // lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.timer" { text = timerText unit; }) config.systemd.timers;
  };
}
