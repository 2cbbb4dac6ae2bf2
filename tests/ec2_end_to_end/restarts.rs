//! Brokers that are killed or stopped, and what the next one finds.

use super::*;

#[test]
fn a_restarted_broker_takes_over_what_boots() {
    with_cloud(&only("bookworm"), IDLE, "", |lab, cloud| {
        cloud.hold();
        let build = nix_build(lab, "boots", "0");
        let instance = launched(lab, cloud);
        lab.wait("the broker to wait for it", || lab.status()["builders"][0]["state"] == "booting");
        lab.kill_broker();
        lab.start_broker();
        cloud.release();
        assert_built(lab, build, "boots");
        assert_eq!(id(&cloud.only()), instance);
        assert_eq!(cloud.calls("RunInstances"), 1);
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_restarted_broker_takes_over_a_launch_whose_answer_nobody_heard() {
    with_cloud(&only("trixie"), IDLE, "", |lab, cloud| {
        cloud.stall("RunInstances");
        let build = nix_build(lab, "unheard", "0");
        let instance = launched(lab, cloud);
        assert!(record(lab).to_string().contains("SSH_HOST_ED25519_KEY"), "the request is written down");
        lab.kill_broker();
        cloud.flow();
        lab.start_broker();
        assert_built(lab, build, "unheard");
        assert_eq!(id(&cloud.only()), instance);
        assert_eq!(cloud.calls("RunInstances"), 1);
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_restarted_broker_goes_on_with_what_builds() {
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        let build = nix_build(lab, "builds", "5");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        let instance = id(&cloud.only());
        assert!(!record(lab).to_string().contains("SSH_HOST"), "no secret stays on disk");
        lab.kill_broker();
        lab.start_broker();
        assert_built(lab, build, "builds");
        assert_eq!(id(&cloud.only()), instance);
        assert_eq!(cloud.calls("RunInstances"), 1);
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_machine_ends_itself_when_its_broker_never_comes_back() {
    with_cloud(&only("bookworm"), "idle-timeout = \"10m\"", "lease = \"1m\"", |lab, cloud| {
        assert_built(lab, nix_build(lab, "orphan", "0"), "orphan");
        let instance = launched(lab, cloud);
        lab.kill_broker();
        let terminated_by_hand = cloud.calls("TerminateInstances");
        lab.wait("the machine to power off", || cloud.states() == ["terminated"]);
        assert_eq!(cloud.calls("TerminateInstances"), terminated_by_hand, "nobody else ended it");
        assert_eq!(record(lab)["stage"]["instance"], instance.as_str());
        lab.start_broker();
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn an_end_that_was_asked_for_in_vain_is_asked_for_by_the_next_broker() {
    with_cloud(&only("bookworm"), IDLE, "", |lab, cloud| {
        cloud.lose("TerminateInstances");
        assert_built(lab, nix_build(lab, "unended", "0"), "unended");
        lab.wait("its end to be asked for", || cloud.calls("TerminateInstances") == 1);
        lab.kill_broker();
        cloud.flow();
        assert_eq!(cloud.states(), ["running"]);
        lab.start_broker();
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_broker_that_dies_as_it_starts_or_stops_a_machine_leaves_none() {
    with_cloud(&only("bookworm"), IDLE, "idle-action = \"stop\"", |lab, cloud| {
        assert_built(lab, nix_build(lab, "before", "0"), "before");
        lab.wait("the machine to be stopped", || cloud.states() == ["stopped"]);
        lab.wait("the builder to be gone", || lab.status()["builders"] == json!([]));

        cloud.stall("StartInstances");
        let build = nix_build(lab, "after", "0");
        lab.wait("its start to be asked for", || cloud.calls("StartInstances") == 1);
        lab.kill_broker();
        cloud.flow();
        cloud.lose("StopInstances");
        lab.start_broker();
        assert_built(lab, build, "after");
        assert_eq!(cloud.calls("RunInstances"), 1);

        lab.wait("its stop to be asked for", || cloud.calls("StopInstances") == 2);
        lab.kill_broker();
        cloud.flow();
        lab.start_broker();
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}
