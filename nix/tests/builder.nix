# One virtual machine as ./builder.nix makes it, without EC2: it takes its user-data, it lets the broker's key in and
# nobody else, nothing else listens, and it powers off by itself when nobody calls.
#
# Written with care and never run: where it was written there is neither KVM nor a cache of NixOS. The scripts are run by
# tests/builder_setup.rs and by the tests of provider/ec2/boot.
{ modules }:
{ hostPkgs, ... }:

let
  keys = import (hostPkgs.path + "/nixos/tests/ssh-keys.nix") hostPkgs;
in
{
  name = "nix-broker-builder";

  nodes.builder = {
    imports = [ modules.builder ];
    services.nix-broker-builder = {
      enable = true;
      preload = [ ];
      buildUsers = 4;
      limits.lease = 240;
      cache = {
        url = "file:///srv/cache";
        publicKey = "cache-1:PxOXCzycYaWCvKr6Fxsj7Y6u5NL7y7SY44G0vqgNV00=";
        # Made when it boots; nobody takes what is signed with it here.
        secretKeyFile = "/etc/cache-key";
      };
    };
    systemd.services.nix-broker-cache.serviceConfig.ExecStartPre = [
      "/bin/sh -c 'test -e /etc/cache-key || /run/current-system/sw/bin/nix key generate-secret --key-name cache-1 >/etc/cache-key'"
    ];
    # What EC2 brings, by hand.
    environment.etc."ec2-metadata/user-data".text = ''
      client-key=${keys.snakeOilEd25519PublicKey}
      features=big-parallel gccarch-znver3
      version=7
    '';
  };

  testScript = ''
    builder.wait_for_unit("multi-user.target")

    with subtest("the dead-man ticks, whatever the user-data says"):
        builder.succeed("systemctl is-active nix-broker-dead-man.timer nix-broker-hard-limit.timer")
        builder.wait_until_succeeds("test -e /run/nix-broker/looked_at")

    with subtest("the user-data is taken"):
        builder.wait_for_file("/run/nix-broker/ready")
        builder.succeed("grep '^7 ' /run/nix-broker/ready")
        builder.succeed("nix config show system-features | grep gccarch-znver3")
        builder.succeed("grep -q ssh-ed25519 /root/.ssh/authorized_keys")

    with subtest("what was built is put into the cache, and its URL is a substituter"):
        builder.succeed("nix config show substituters | grep file:///srv/cache")
        out = builder.succeed("nix-build --no-out-link -E 'derivation { name = \"kept\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out; :\" ]; }'").strip()
        builder.wait_until_succeeds(f"grep -rl {out} /srv/cache/*.narinfo")

    with subtest("nothing listens but sshd"):
        listening = builder.succeed("ss --listening --numeric --no-header --tcp --udp | grep -v '127\\.\\|\\[::1\\]'").strip().splitlines()
        assert all(":22 " in line for line in listening), listening

    with subtest("a build does not reach the instance's metadata"):
        builder.fail("runuser -u nobody -- curl --max-time 5 --silent http://169.254.169.254/ 2>/dev/null")

    with subtest("without a word from a broker it is off before long"):
        builder.wait_for_shutdown()
  '';
}
