//! Machines that only a `proxy-command` reaches.

use super::*;

/// The machines let in everybody but the broker's user. A bastion, to which that user may log in, leads to them as alice.
const BASTION: &str = r#"
uid=$(id -u nix-broker)
ip rule add pref 10 lookup local
ip rule del pref 0
for zone in 1 2 3; do ip rule add pref 5 uidrange $uid-$uid to 127.0.$zone.0/24 prohibit; done
usermod -p '*' alice
mkdir -p /b /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /b/host_key
ssh-keygen -q -t ed25519 -N '' -f /b/key
chown nix-broker /b/key
echo "[127.0.9.1]:2222 $(cut -d' ' -f1,2 /b/host_key.pub)" > /b/known_hosts
cat > /b/sshd_config <<'C'
ListenAddress 127.0.9.1
Port 2222
HostKey /b/host_key
PidFile /b/pid
AuthorizedKeysFile /b/key.pub
UsePAM no
StrictModes no
C
"#;

/// A pool behind this command.
fn behind(lab: &Lab, cloud: &Cloud, pool: &str, command: &str) {
    let (feature, settings) =
        (feature_of_this_machine(), cloud.settings().replace("reach = \"private\"\n", ""));
    let pool = format!("[[pool]]\nname = \"aws\"\nfeatures = [\"{feature}\"]\n{pool}\n");
    let command = Value::from(command);
    lab.write(
        "/etc/nix-broker/config.toml",
        &format!("{pool}[pool.ec2]\n{settings}proxy-command = {command}\n"),
    );
}

/// What runs of a proxy command on the broker's machine.
fn proxies(lab: &Lab, pattern: &str) -> String {
    lab.sh(&format!("pgrep -u nix-broker -f '{pattern}' || true"))
}

#[test]
fn a_machine_behind_a_bastion_is_reached_through_a_proxy_command_and_in_no_other_way() {
    with_cloud(&RELEASES, IDLE, "", |lab, cloud| {
        lab.sh(BASTION);
        lab.serve("127.0.9.1:2222", "/usr/sbin/sshd -D -e -f /b/sshd_config", "/b/log");
        let ssh = "exec ssh -o BatchMode=yes -o UserKnownHostsFile=/b/known_hosts -i /b/key -p 2222 -W %h:%p alice@127.0.9.1";
        behind(lab, cloud, IDLE, ssh);
        assert!(lab.stop_broker().success());
        lab.start_broker();
        let build = nix_build(lab, "behind", "3");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        let instance = cloud.only();
        let knock = format!("exec 3<>/dev/tcp/{}/22", instance["PrivateIpAddress"].as_str().unwrap());
        lab.run("alice", &["bash", "-c", &knock]);
        let refused = lab.output("nix-broker", &["bash", "-c", &knock]);
        assert!(
            !refused.status.success() && text(&refused).contains("Permission denied"),
            "{}",
            text(&refused)
        );
        assert!(!proxies(lab, "alice@127.0.9.[1]").is_empty());
        assert_built(lab, build, "behind");
        assert_account_is_empty(lab, cloud);
        lab.wait("the proxy command to end", || proxies(lab, "alice@127.0.9.[1]").is_empty());
        lab.sh("kill $(cat /b/pid)");
        lab.assert_all_is_over();
    });
}

#[test]
fn a_proxy_command_that_fails_or_hangs_says_so_and_leaves_nothing() {
    let pool = format!("{IDLE}\nlaunch-timeout = \"8s\"");
    let cases = [
        (
            "echo \"bastion: no way to %h\" >&2; exit 255",
            "the `proxy-command` ended with status 255 and printed `bastion: no way to 127.0.",
        ),
        (
            "definitely-not-installed %h %p",
            "ended with status 127 and printed `/bin/sh: 1: definitely-not-installed",
        ),
        (
            ": %i; echo asks for a password >&2; sleep 12345 & wait",
            "the `proxy-command` had not ended by itself and printed `asks for a password`",
        ),
    ];
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        for (number, (command, expected)) in cases.into_iter().enumerate() {
            assert!(lab.stop_broker().success());
            behind(lab, cloud, &pool, command);
            lab.start_broker();
            let build = nix_build(lab, &format!("nowhere-{number}"), "0");
            lab.wait("an instance to be tried", || lab.status()["builders"][0]["state"] == "booting");
            let (ok, _, said) = end_of(lab, build);
            assert!(!ok && said.contains(expected), "{said}\n{}", lab.diagnosis());
            assert!(said.contains("try it by hand, as the user that the broker runs as"), "{said}");
            assert_account_is_empty(lab, cloud);
            lab.wait("the proxy command to end", || proxies(lab, "sleep 1234[5]").is_empty());
        }
        // A broker that ends does not wait for one that hangs, and takes it along.
        lab.assert_all_is_over();
        let build = nix_build(lab, "never", "0");
        lab.wait("the proxy command to hang", || !proxies(lab, "sleep 1234[5]").is_empty());
        assert!(lab.stop_broker().success(), "{}", lab.diagnosis());
        assert_eq!(proxies(lab, "sleep 1234[5]"), "");
        let (ok, _, said) = end_of(lab, build);
        assert!(!ok, "{said}");
        for state in cloud.states() {
            assert!(["shutting-down", "terminated"].contains(&state.as_str()), "{state}");
        }
    });
}
