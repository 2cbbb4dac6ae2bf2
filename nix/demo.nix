# `nix run .#demo`: a flake of 121 derivations, built by a broker that lives as long as the command, on builders that are
# processes of this machine. Nothing has to be set up, nobody has to be root, and nothing is left.
{
  writeShellApplication,
  nix-broker,
  nix,
  openssh,
  coreutils,
  pkgsStatic,
}:

writeShellApplication {
  name = "nix-broker-demo";
  runtimeInputs = [
    nix-broker
    nix
    openssh
    coreutils
  ];
  text = ''
    work=$(mktemp -d)
    trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
    mkdir -p "$work/flake/bin"
    cp ${../tests/demo/flake.nix} "$work/flake/flake.nix"
    cp ${pkgsStatic.busybox}/bin/busybox "$work/flake/bin/"
    # A store of its own: the one of this machine belongs to its nix-daemon, which would not take our hook from you.
    NIX_CONFIG="extra-experimental-features = nix-command flakes
    sandbox = false
    substituters =
    max-jobs = 0" broker run -- nix build --store "$work/store" --no-link --print-build-logs "path:$work/flake"
  '';
}
