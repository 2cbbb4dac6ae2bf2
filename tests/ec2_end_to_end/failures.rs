//! Machines that cannot be launched, do not come up, or are taken away.

use super::*;

#[test]
fn a_machine_that_cannot_be_set_up_fails_the_build_with_the_reason() {
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        // Without a firewall a route would do; without both, builds could read the host key.
        cloud.break_program("iptables");
        cloud.break_program("ip");
        let (ok, _, said) = end_of(lab, nix_build(lab, "broken", "0"));
        assert!(!ok, "{said}");
        let reason = "builds cannot be kept from the instance's metadata: iptables does not work here";
        assert!(said.contains(reason), "{said}\n{}", lab.diagnosis());
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_machine_that_never_answers_is_ended_and_its_console_shown() {
    let pool = format!("{IDLE}\nlaunch-timeout = \"12s\"");
    with_cloud(&only("trixie"), &pool, "", |lab, cloud| {
        // EC2 says that it runs, and nothing of it boots.
        cloud.hold();
        let (ok, _, said) = end_of(lab, nix_build(lab, "silent", "0"));
        assert!(!ok, "{said}");
        for words in ["after its launch", "its console says last: ", "failed to launch 3 times in a row"] {
            assert!(said.contains(words), "no `{words}`: {said}\n{}", lab.diagnosis());
        }
        cloud.release();
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_processor_that_lacks_what_the_pool_promises_takes_no_build() {
    // Amazon has both processors, and this machine is not both.
    let elsewhere = ["c7i.large sapphirerapids", "c7a.large znver4"];
    let (kind, level) =
        elsewhere.iter().map(|it| it.split_once(' ').unwrap()).find(|(_, level)| lacks(level)).unwrap();
    let feature = format!("gccarch-{level}");
    let pool = format!("{IDLE}\nmandatory-features = [\"{feature}\"]");
    with_cloud(&only("bookworm"), &pool, &format!("types = [\"{kind}\"]"), |lab, cloud| {
        lab.sh(&format!("sed -i 's/requiredSystemFeatures = \\[/& \"{feature}\"/' /t/tuned-here.nix"));
        let (ok, _, said) = end_of(lab, nix_build(lab, "elsewhere", "0"));
        assert!(!ok, "{said}");
        let reason = format!("{kind}'s processor cannot run code for `gccarch-");
        assert!(said.contains(&reason) && said.contains("/proc/cpuinfo lacks"), "{said}");
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_machine_that_is_taken_away_loses_no_build() {
    with_cloud(&only("trixie"), IDLE, "", |lab, cloud| {
        let build = nix_build(lab, "moved", "4");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        let first = id(&cloud.only());
        cloud.ec2("terminate_instances", &json!({ "InstanceIds": [first] }));
        assert_built(lab, build, "moved");
        assert_eq!(cloud.instances().len(), 2, "another machine took it over");
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn what_cannot_be_launched_says_what_to_do() {
    let image = |id: &str| format!("image = \"{id}\"");
    let cases = [
        ("AWS_ACCESS_KEY_ID=", String::new(), "credentials"),
        ("AWS_ENDPOINT_URL_EC2=http://127.0.0.1:5000/moto-api/", String::new(), "AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL_EC2=http://127.0.0.1:1/", String::new(), "the connection is refused"),
        ("", image("ami-00000000000064600"), "image `ami-00000000000064600` is for arm64"),
        ("", image("ami-0123456789abcdef0"), "ami-0123456789abcdef0"),
        ("", "image-name = \"nixos/30.11*\"".to_owned(), "has no image `nixos/30.11*` for x86_64"),
    ];
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        for (number, (variable, line, expected)) in cases.iter().enumerate() {
            lab.stop_broker();
            configure(lab, cloud, IDLE, line);
            let mut environment = cloud.environment();
            environment.extend((!variable.is_empty()).then(|| (*variable).to_owned()));
            lab.set_environment(environment);
            lab.start_broker();
            let (ok, _, said) = end_of(lab, nix_build(lab, &format!("never-{number}"), "0"));
            assert!(!ok && said.contains(expected), "{variable}{line}: {said}\n{}", lab.diagnosis());
            lab.assert_all_is_over();
        }
        assert_eq!(cloud.calls("RunInstances"), 0);
    });
}
