# One virtual machine with a `local` pool: its builders are processes of the service, and the service's own hardening
# lets them build in a sandbox.
#
# Written with care and never run: where it was written there is neither KVM nor a cache of NixOS.
{ modules }:
{ ... }:

let
  work = builtins.toFile "work.nix" ''
    { name, script }: derivation {
      inherit name;
      system = builtins.currentSystem;
      requiredSystemFeatures = [ "elsewhere" ];
      builder = "/bin/sh";
      args = [ "-c" script ];
    }
  '';
in
{
  name = "nix-broker-local";

  nodes.machine = {
    imports = [ modules.broker ];
    nix.settings = {
      system-features = [ ];
      substituters = [ ];
    };
    users.users.alice.isNormalUser = true;
    services.nix-broker = {
      enable = true;
      settings = {
        drain-grace = "1m";
        pool = [
          {
            name = "here";
            features = [ "elsewhere" ];
            max-builders = 2;
            slots = 2;
            local = { };
          }
        ];
      };
    };
  };

  testScript = ''
    machine.wait_for_unit("nix-broker.service")

    def build(who: str, name: str, script: str = "echo done > $out; :") -> str:
        return f"su - {who} -c 'nix-build --no-out-link ${work} --argstr name {name} --argstr script \"{script}\"'".replace("$out", "\\$out")

    with subtest("a user's and root's build run in a sandbox of the service"):
        for who in ["alice", "root"]:
            out = machine.succeed(build(who, f"for-{who}")).strip()
            machine.succeed(f"nix-store --verify-path {out}")
        # Seen from a sandbox, the machine's own files are not there.
        machine.succeed(build("alice", "sandboxed", "test ! -e /etc/nix-broker/config.toml && echo yes > $out; :"))

    with subtest("a stop ends every machine, and what it was building"):
        machine.execute(build("alice", "endless", "while :; do :; done") + " >/dev/null 2>&1 &")
        machine.wait_until_succeeds("broker builds | grep -q endless")
        machine.succeed("systemctl kill --kill-whom=main --signal=TERM nix-broker.service")
        machine.succeed("systemctl stop nix-broker.service")
        machine.fail("pgrep -u nix-broker")
        machine.fail("systemctl is-failed nix-broker.service")

    with subtest("a killed broker comes back, and leaves no machine behind"):
        machine.succeed("systemctl start nix-broker.service")
        machine.succeed(build("alice", "before"))
        machine.succeed("systemctl kill --kill-whom=main --signal=KILL nix-broker.service")
        machine.wait_until_succeeds("broker status")
        machine.succeed(build("alice", "after"))
  '';
}
