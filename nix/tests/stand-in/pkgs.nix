# The part of nixpkgs' package set that our own Nix files use: values of the right shape, of which nothing can be built
# but a plain text file.
{
  lib,
  system,
  # How a machine of a VM test is evaluated.
  nixosSystem,
}:

let
  package =
    name: more:
    let
      outPath = "${builtins.storeDir}/${builtins.substring 0 32 (builtins.hashString "sha256" (builtins.toJSON [ name (keys more) ]))}-${name}";
    in
    {
      type = "derivation";
      inherit name outPath;
      drvPath = "${outPath}.drv";
      pname = name;
      version = "0";
      meta = { };
    }
    // more;
  # What tells two packages apart here. Functions and packages are not looked into.
  keys = builtins.mapAttrs (_: value: if builtins.isString value then value else builtins.typeOf value);

  # A value as one line of TOML; a table is written inline, which TOML allows anywhere but at the top.
  inline =
    value:
    if builtins.isAttrs value && !(value ? outPath) then
      "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList (key: inner: "${builtins.toJSON key} = ${inline inner}") value)} }"
    else if builtins.isList value then
      "[ ${lib.concatMapStringsSep ", " inline value} ]"
    else if builtins.isString value || builtins.isPath value || builtins.isAttrs value then
      builtins.toJSON (toString value)
    else
      builtins.toJSON value;

  self = {
    inherit lib;
    stdenv = {
      buildPlatform = {
        inherit system;
        canExecute = _: true;
      };
      hostPlatform = {
        inherit system;
        isLinux = true;
      };
      mkDerivation = attrs: package attrs.name attrs;
    };
    callPackage = file: arguments: import file (builtins.intersectAttrs (builtins.functionArgs (import file)) self // arguments);
    rustPlatform = {
      buildRustPackage =
        attrs:
        package "${attrs.pname}-${attrs.version}" (
          {
            overrideAttrs = change: self.rustPlatform.buildRustPackage (attrs // (if builtins.isFunction change then change attrs else change));
            cargoDeps = "/cargo-deps";
          }
          // attrs
        );
      cargoSetupHook = package "cargo-setup-hook" { };
    };
    pkgsStatic = self;
    mkShell = attrs: package "shell" { shell = attrs; };
    # As an attribute of the package, so that a test can look at what is written.
    writeText = name: text: package name { inherit text; };
    writeScript = name: text: package name { inherit text; };
    writeShellApplication = attrs: package attrs.name (attrs // { meta.mainProgram = attrs.name; });
    formats.toml = _: {
      type =
        let
          scalar = lib.types.oneOf [
            lib.types.bool
            lib.types.int
            lib.types.float
            lib.types.str
            lib.types.path
          ];
          # The description ends the recursion that a description made of the parts' would be.
          value =
            lib.types.oneOf [
              scalar
              (lib.types.listOf value)
              (lib.types.attrsOf value)
            ]
            // {
              description = "TOML value";
            };
        in
        lib.types.attrsOf value;
      generate = name: value: package name {
        value = builtins.toJSON value;
        text = lib.concatMapStringsSep "\n" (key: "${key} = ${inline value.${key}}") (builtins.attrNames value) + "\n";
      };
    };
    runCommand = name: _: script: package name { inherit script; };
    # Every machine of the test is evaluated, and must have no complaint.
    testers.runNixOSTest =
      test:
      let
        # nixpkgs' own library wraps it, to remember its file.
        first = lib.head test.imports;
        opened = (if lib.isAttrs first then lib.head first.imports else first) { hostPkgs = self; };
        machine = module: (nixosSystem { modules = [ module ]; inherit system; }).config;
        complaints = lib.concatMap (module: lib.filter (a: !a.assertion) (machine module).assertions) (lib.attrValues opened.nodes);
        whole = builtins.deepSeq (map (module: (machine module).systemd.units) (lib.attrValues opened.nodes)) (
          if complaints == [ ] then builtins.stringLength opened.testScript > 0 else throw (lib.head complaints).message
        );
      in
      package opened.name { } // { drvPath = assert whole; "${builtins.storeDir}/${opened.name}.drv"; };
    nixVersions = lib.genAttrs [ "nix_2_28" "nix_2_31" "nix_2_34" "latest" ] (
      version: package "nix" { version = builtins.replaceStrings [ "nix_" "_" "latest" ] [ "" "." "2.35" ] version; }
    );
    nix = package "nix" { version = "2.31.2"; };
    path = toString ./.;
  }
  // lib.genAttrs [
    "bash"
    "busybox"
    "cargo"
    "cargo-deny"
    "cargo-nextest"
    "clippy"
    "coreutils"
    "curl"
    "gawk"
    "gnugrep"
    "gnused"
    "installShellFiles"
    "iptables"
    "nixfmt-tree"
    "openssh"
    "rust-analyzer"
    "rustc"
    "rustfmt"
    "systemd"
    "util-linux"
    "stdenvNoCC"
    "cacert"
    "iproute2"
    "shadow"
    "which"
    "unzip"
    "python3"
    "pkg-config"
    "perl"
    "patchelf"
    "git"
    "gnumake"
  ] (name: package name { });
in
self
