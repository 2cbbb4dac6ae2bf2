//! What a person asks for: `broker status`, `cost`, `sweep`, `init` with its network, and a trial of a pool.

use super::*;

#[test]
fn status_and_cost_say_what_a_machine_is_and_costs() {
    with_cloud(&only("trixie"), "idle-timeout = \"10m\"", "", |lab, cloud| {
        assert_built(lab, nix_build(lab, "costs", "0"), "costs");
        let instance = cloud.only();
        let status = lab.status();
        let builder = &status["builders"][0];
        assert_eq!(builder["instance"], instance["InstanceId"]);
        assert_eq!(builder["instance-type"], instance["InstanceType"]);
        assert_eq!(builder["zone"], instance["Placement"]["AvailabilityZone"]);
        assert_eq!(builder["market"], "on-demand");
        assert!(
            builder["rate"].as_f64().unwrap() > 0.0 && builder["cost"].as_f64().unwrap() > 0.0,
            "{builder}"
        );
        let told = lab.run("root", &["broker", "status"]);
        assert!(told.contains(instance["InstanceType"].as_str().unwrap()) && told.contains("/h"), "{told}");
        assert!(lab.stop_broker().success());
        lab.start_broker();
        let told = lab.run("root", &["broker", "cost", "--by", "builder"]);
        assert!(told.contains(&id(&instance)), "{told}");
        assert_account_is_empty(lab, cloud);
    });
}

#[test]
fn a_lost_broker_is_swept_up_from_any_machine() {
    with_cloud(&only("forky"), "idle-timeout = \"10m\"", "", |lab, cloud| {
        assert_built(lab, nix_build(lab, "lost", "0"), "lost");
        let instance = id(&cloud.only());
        lab.kill_broker();
        lab.sh(&format!("rm -rf {}/ec2 /etc/nix-broker", lab.state_dir()));
        let shown = broker(lab, cloud, &["sweep", "--dry-run", "--everything"]);
        assert!(shown.contains(&instance), "{shown}");
        // It was wanted a moment ago.
        broker(lab, cloud, &["sweep", "--yes"]);
        assert_eq!(cloud.states(), ["running"]);
        broker(lab, cloud, &["sweep", "--everything", "--yes"]);
        assert!(["shutting-down", "terminated"].contains(&cloud.states()[0].as_str()));
    });
}

#[test]
fn init_makes_the_network_that_a_build_then_uses_and_removes_it_again() {
    with_cloud(&only("bookworm"), IDLE, "", |lab, cloud| {
        assert!(lab.stop_broker().success());
        let before = cloud.ec2("describe_security_groups", &json!({}));
        let feature = feature_of_this_machine();
        let pool = format!("[[pool]]\nname = \"aws\"\nfeatures = [\"{feature}\"]\n{IDLE}\n");
        lab.write("/etc/nix-broker/config.toml", &format!("{pool}[pool.ec2]\nreach = \"private\"\n"));
        let shown = broker(lab, cloud, &["init", "--dry-run"]);
        assert!(shown.contains("security group"), "{shown}");
        assert_eq!(cloud.ec2("describe_security_groups", &json!({})), before, "--dry-run makes nothing");
        broker(lab, cloud, &["init", "--yes"]);
        lab.start_broker();
        let build = nix_build(lab, "network", "3");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        let instance = cloud.only();
        let groups = &instance["NetworkInterfaces"][0]["Groups"];
        assert_eq!(groups[0]["GroupName"], "nix-broker", "{instance:#}");
        assert_built(lab, build, "network");
        assert_account_is_empty(lab, cloud);
        assert!(lab.stop_broker().success());
        broker(lab, cloud, &["init", "--remove", "--yes"]);
        assert_eq!(cloud.ec2("describe_security_groups", &json!({})), before, "--remove leaves nothing");
    });
}

/// What the broker has itself be told: builders at public addresses, each at the far end of a wire, in one VPC.
#[test]
fn builders_at_public_addresses_send_to_each_other_inside_their_vpc() {
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        assert!(lab.stop_broker().success());
        lab.write("/t/direct.nix", include_str!("../nix/direct.nix"));
        let pool = |name: &str, direct: bool| {
            format!(
                "[[pool]]\nname = \"{name}\"\nfeatures = [\"{name}\"]\nidle-timeout = \"10m\"\ndirect = {direct}\n[pool.ec2]\n"
            )
        };
        let configure = |direct: bool| {
            lab.write("/etc/nix-broker/config.toml", &[pool("a", direct), pool("b", direct)].concat());
        };
        // A network as a version made it that let nobody in but the broker.
        configure(false);
        let tell = cloud.address_service();
        let words = ["init", "--yes"];
        let environment = [cloud.environment(), vec![tell]].concat();
        let init =
            [&["env"], &environment.iter().map(String::as_str).collect::<Vec<_>>()[..], &["broker"], &words]
                .concat();
        lab.run("alice", &init);
        configure(true);
        lab.set_environment(environment.clone());
        lab.start_broker();
        let words = ["/t/direct.nix", "-A", "used", "--argstr", "nonce", "1", "--argstr", "mib", "64"];
        lab.build("alice", &words);

        let instances = cloud.instances();
        let on = |pool: &str| instances.iter().find(|it| tag(it, "nix-broker:pool") == pool).unwrap();
        let (a, b) = (on("a"), on("b"));
        assert!(a["VpcId"] == b["VpcId"] && a["PublicIpAddress"].is_string(), "{a:#} {b:#}");
        // The launch has seen to the group.
        let group = b["NetworkInterfaces"][0]["Groups"][0]["GroupId"].clone();
        let groups = cloud.ec2("describe_security_groups", &json!({ "GroupIds": [group] }));
        let rules = groups["SecurityGroups"][0]["IpPermissions"].as_array().unwrap();
        let among: Vec<_> =
            rules.iter().flat_map(|rule| rule["UserIdGroupPairs"].as_array().unwrap()).collect();
        assert_eq!((among.len(), &among[0]["GroupId"]), (1, &group), "{rules:?}");
        // It went inside, and every face says so.
        let sent = cloud.sent_to(&id(b));
        assert!(sent < 4 << 20, "{sent} bytes that the other builder could send\n{}", lab.diagnosis());
        let why = lab.run("root", &["broker", "why", "used"]);
        let line = why.lines().find(|line| line.contains("has its inputs: ")).unwrap_or(&why);
        assert!(line.contains("2 from b-"), "{why}\n{}", lab.diagnosis());
        let all: Value = serde_json::from_str(&lab.run("root", &["broker", "history", "--json"])).unwrap();
        let used = all["builds"].as_array().unwrap().iter().find(|build| build["name"] == "used").unwrap();
        let bytes = |key: &str| used[key].as_u64().unwrap();
        assert!(bytes("bytes-direct") >= 64 << 20 && bytes("bytes-up") < 4 << 20, "{used:#}");
        assert!(lab.stop_broker().success());
        assert_account_is_empty(lab, cloud);
    });
}

#[test]
fn a_pool_is_tried_on_a_machine_that_ends_with_the_trial() {
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        lab.sh("echo 'trusted-users = root alice' >> /etc/nix/nix.conf");
        lab.start_daemon(&[]);
        let said = broker(lab, cloud, &["try", "--yes", "aws"]);
        assert!(said.contains("ok    pool `aws` built it on "), "{said}");
        assert_eq!(cloud.states().len(), 1);
        // The broker that runs here has launched nothing, and has not taken it for its own.
        assert_eq!(lab.status()["builders"], json!([]));
        assert_account_is_empty(lab, cloud);
    });
}
