# Two virtual machines: the builds of `client` are done on `builder`, whoever starts them, with nothing set by hand.
#
# Written with care and never run: where it was written there is neither KVM nor a cache of NixOS. The same promises
# are tested for real, on other distributions' Nix, by tests/end_to_end.rs; what only this can show is the module.
{ modules, nix }:
{ hostPkgs, ... }:

let
  keys = import (hostPkgs.path + "/nixos/tests/ssh-keys.nix") hostPkgs;

  # Needs a feature that `client` does not have, so it is built on `builder` or not at all, and nothing but the shell
  # that Nix's sandbox has, because there is no network to get anything else from.
  work = builtins.toFile "work.nix" ''
    { name }: derivation {
      inherit name;
      system = builtins.currentSystem;
      requiredSystemFeatures = [ "elsewhere" ];
      builder = "/bin/sh";
      args = [ "-c" "echo made; echo ''${name} > $out; :" ];
    }
  '';
in
{
  name = "nix-broker-build-${nix.version}";

  nodes.builder = {
    nix.package = nix;
    nix.settings = {
      trusted-users = [ "builder" ];
      system-features = [ "elsewhere" ];
      substituters = [ ];
    };
    users.users.builder = {
      isNormalUser = true;
      openssh.authorizedKeys.keys = [ keys.snakeOilEd25519PublicKey ];
    };
    services.openssh = {
      enable = true;
      hostKeys = [
        {
          type = "ed25519";
          path = "/etc/ssh/host_key";
        }
      ];
    };
    # The key that the client's configuration names must be there before sshd makes one of its own.
    environment.etc."ssh/host_key" = {
      source = keys.snakeOilEd25519PrivateKey;
      mode = "0400";
    };
  };

  nodes.client = {
    imports = [ modules.broker ];
    nix.package = nix;
    nix.settings = {
      system-features = [ ];
      substituters = [ ];
    };
    users.users.alice.isNormalUser = true;
    environment.etc."nix-broker/identity" = {
      source = keys.snakeOilEd25519PrivateKey;
      user = "nix-broker";
      mode = "0400";
    };
    services.nix-broker = {
      enable = true;
      settings.pool = [
        {
          name = "rack";
          features = [ "elsewhere" ];
          hosts = [
            {
              address = "builder";
              user = "builder";
              identity-file = "/etc/nix-broker/identity";
              host-keys = [ keys.snakeOilEd25519PublicKey ];
            }
          ];
        }
      ];
    };
  };

  testScript = ''
    start_all()
    builder.wait_for_unit("sshd.service")
    client.wait_for_unit("nix-broker.service")

    def build(who: str, name: str, options: str = "") -> None:
        command = f"nix-build --no-out-link ${work} --argstr name {name} {options} 2>/tmp/errors"
        out = client.succeed(f"su - {who} -c '{command}' || {{ cat /tmp/errors >&2; exit 1; }}").strip()
        said = client.succeed("cat /tmp/errors; rm /tmp/errors")
        assert "made" in said, f"the build log did not reach {who}: {said}"
        assert "warning" not in said, f"{who} got a warning: {said}"
        builder.succeed(f"test -e {out}")
        assert client.succeed(f"cat {out}").strip() == name
        client.succeed(f"nix-store --verify-path {out}")

    with subtest("an ordinary user, through the daemon"):
        build("alice", "for-alice")

    with subtest("root, without the daemon and through it"):
        build("root", "for-root", "--store local")
        build("root", "for-root-too", "--store daemon")

    with subtest("a command that is only asked leaves no warning"):
        said = client.succeed("su - alice -c 'nix-store --version; nix-store --query --references /run/current-system' 2>&1 >/dev/null")
        assert "warning" not in said, said

    with subtest("status works for everybody, and nothing outlives the service"):
        client.succeed("su - alice -c 'broker status'")
        client.succeed("systemctl stop nix-broker.service")
        client.fail("systemctl is-failed nix-broker.service")
        client.fail("pgrep -u nix-broker")

    with subtest("what was stopped stays so, and a hook starts a broker whose socket is there"):
        client.fail("su - alice -c 'broker status'")
        client.fail("systemctl is-active nix-broker.service nix-broker.socket")
        client.succeed("systemctl start nix-broker.socket")
        build("alice", "by-its-socket")
        client.succeed("systemctl is-active nix-broker.service")

    with subtest("hooks wait while the broker is started again"):
        for round in range(3):
            client.succeed("systemctl restart --no-block nix-broker.service")
            build("alice", f"restarted-{round}")
        client.succeed("systemctl stop nix-broker.service")

    with subtest("without the broker a build that fits no machine fails, and others are built here"):
        client.fail("nix-build --no-out-link ${work} --argstr name too-late")
        client.succeed("nix-build --no-out-link -E 'derivation { name = \"here\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out; :\" ]; }'")
  '';
}
