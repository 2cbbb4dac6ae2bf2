//! `broker doctor --aws`.

use super::{Desk, ONE_POOL, REGION};
use crate::fake_ec2::Fault;

#[test]
fn a_new_account_is_told_about_init() {
    let desk = Desk::new(ONE_POOL);
    insta::assert_snapshot!(desk.run(&["doctor", "--aws"]).text(), @r#"
    exit 1
    --- stdout
    note  AWS_ENDPOINT_URL_EC2 is set: `URL` is asked instead of AWS
    ok    EC2 takes the credentials found here, in eu-central-1
    ok    pool `zen3`: 36 types fit, first `c8a.2xlarge`; offered in eu-central-1a, eu-central-1b, eu-central-1c
    ok    pool `zen3`: boots `ami-00000000000000012` (nixos/26.05.1301.cccccccccccc-x86_64-linux)
    fail  pool `zen3`: there is no security group of the broker in eu-central-1 to launch in: `broker init` makes what is missing
          hint: `broker init --dry-run` shows what it would use and what it would make
    ok    29 of the 30 actions that brokers use are allowed
    note  not tried, as there is no network with an image to launch in it: `RunInstances`
    note  quotas cannot be seen through EC2: a new account often has 5 vCPUs of standard on-demand instances (quota L-1216C47A) and as few of spot (L-34B43A08), and a builder of the usual size has 8; see https://eu-central-1.console.aws.amazon.com/servicequotas/home/services/ec2/quotas

    1 thing to be put right.
    "#);
    assert_eq!(desk.deeds(), [""; 0]);
}

#[test]
fn after_init_all_is_well_and_every_action_was_tried() {
    let desk = Desk::new(ONE_POOL);
    desk.run(&["init", "--yes"]).ended(0);
    let deeds = desk.deeds();
    insta::assert_snapshot!(desk.run(&["doctor", "--aws"]).text(), @r#"
    exit 0
    --- stdout
    note  AWS_ENDPOINT_URL_EC2 is set: `URL` is asked instead of AWS
    ok    EC2 takes the credentials found here, in eu-central-1
    ok    pool `zen3`: 36 types fit, first `c8a.2xlarge`; offered in eu-central-1a, eu-central-1b, eu-central-1c
    ok    pool `zen3`: boots `ami-00000000000000012` (nixos/26.05.1301.cccccccccccc-x86_64-linux)
    ok    pool `zen3`: `vpc-00000000000000001` has subnets in eu-central-1a, eu-central-1b, eu-central-1c
    ok    pool `zen3`: security group `sg-00000000000000016` lets in 198.51.100.7/32 to port 22
    ok    30 of the 30 actions that brokers use are allowed
    note  quotas cannot be seen through EC2: a new account often has 5 vCPUs of standard on-demand instances (quota L-1216C47A) and as few of spot (L-34B43A08), and a builder of the usual size has 8; see https://eu-central-1.console.aws.amazon.com/servicequotas/home/services/ec2/quotas

    Nothing keeps the pools on EC2 from launching, as far as can be seen.
    "#);
    assert_eq!(desk.deeds(), deeds, "it does nothing");
    let launch = desk.fake.seen_of("RunInstances");
    assert_eq!(launch.len(), 1);
    assert_eq!(launch[0].form.get("DryRun"), Some("true"));
    assert!(desk.fake.instances().is_empty());
}

#[test]
fn a_role_for_expiry_is_named_and_cannot_be_of_another_partition() {
    let with = |role: &str| {
        let pool = format!("{ONE_POOL}expiry-role = \"{role}\"\n").replace("region = \"eu-central-1\"\n", "");
        let desk = Desk::new(&pool).with("AWS_REGION", REGION);
        desk.run(&["init", "--yes"]).ended(0);
        desk
    };
    let words = with("arn:aws:iam::123456789012:role/r").run(&["doctor", "--aws"]).ended(0);
    let expected =
        "note  pool `zen3`: AWS itself ends what is too old, as `arn:aws:iam::123456789012:role/r`";
    assert!(words.contains(expected) && words.contains("nix/iam-policy-expiry.json"), "{words}");
    let words = with("arn:aws-cn:iam::123456789012:role/r").run(&["doctor", "--aws"]).ended(1);
    let expected = "fail  pool `zen3`: `expiry-role` is a role of another partition than eu-central-1";
    assert!(words.contains(expected), "{words}");
}

#[test]
fn a_missing_permission_is_named_with_what_it_is_for() {
    let desk = Desk::new(ONE_POOL);
    desk.run(&["init", "--yes"]).ended(0);
    desk.launch(REGION, &[], &[]);
    desk.fake.faults(|faults| {
        faults.deny("TerminateInstances");
        faults.deny("CreateDefaultVpc");
    });
    let words = desk.run(&["doctor", "--aws"]).ended(1);
    assert!(
        words.contains(
            "fail  `ec2:TerminateInstances` is not allowed: nothing that was launched can be ended"
        ),
        "{words}"
    );
    assert!(words.contains("nix/iam-policy.json") && words.contains("user/someone"), "{words}");
    assert!(words.contains("warn  `ec2:CreateDefaultVpc` is not allowed"), "{words}");
    assert!(words.contains("nix/iam-policy-init.json"), "{words}");
    assert!(words.contains("1 instance of some broker is there"), "{words}");
    assert!(words.contains("1 thing to be put right"), "{words}");
}

#[test]
fn a_permission_that_may_depend_on_a_tag_is_not_judged_without_something_that_has_it() {
    let desk = Desk::new(ONE_POOL);
    desk.run(&["init", "--yes"]).ended(0);
    desk.fake.faults(|faults| faults.deny("TerminateInstances"));
    let words = desk.run(&["doctor", "--aws"]).ended(0);
    assert!(
        words.contains("not tried, as there is no instance of a broker: `TerminateInstances`"),
        "{words}"
    );
}

#[test]
fn an_image_that_is_not_there_is_said() {
    let desk = Desk::new(&format!("{ONE_POOL}image-name = \"nixos/99*\"\n"));
    let words = desk.run(&["doctor", "--aws"]).ended(1);
    assert!(words.contains("has no image that matches `image-owner` and `image-name`"), "{words}");
    let desk = Desk::new(&format!("{ONE_POOL}image = \"ami-0123456789abcdef0\"\n"));
    let words = desk.run(&["doctor", "--aws"]).ended(1);
    assert!(words.contains("ami-0123456789abcdef0"), "{words}");
}

#[test]
fn an_image_of_the_other_architecture_is_said() {
    let desk = Desk::new(ONE_POOL);
    let image = desk.fake.add_image("self", "mine", "arm64", "2026-01-01");
    std::fs::write(desk.dir.path().join("config.toml"), format!("{ONE_POOL}image = \"{image}\"\n")).unwrap();
    let words = desk.run(&["doctor", "--aws"]).ended(1);
    assert!(words.contains(&format!("image `{image}` is for arm64, its types are x86_64")), "{words}");
}

#[test]
fn an_address_that_is_not_let_in_is_said() {
    let mut desk = Desk::new(ONE_POOL);
    desk.run(&["init", "--yes"]).ended(0);
    desk.moves_to("203.0.113.50");
    let words = desk.run(&["doctor", "--aws"]).ended(0);
    assert!(words.contains("does not let in 203.0.113.50/32 to port 22"), "{words}");
}

#[test]
fn an_endpoint_that_knows_no_dry_run_is_not_asked_to_end_anything() {
    let desk = Desk::new(ONE_POOL);
    desk.run(&["init", "--yes"]).ended(0);
    let deeds = desk.deeds();
    let empty =
        "<DescribeInstancesResponse><requestId>r</requestId><reservationSet/></DescribeInstancesResponse>";
    let answers = Fault::Garbage { status: 200, body: empty.to_owned() };
    desk.fake.faults(|faults| faults.plan("DescribeInstances", 1000, answers));
    let words = desk.run(&["doctor", "--aws"]).ended(0);
    assert!(words.contains("permissions were not tried"), "{words}");
    assert_eq!(desk.deeds(), deeds);
    assert!(desk.fake.seen_of("TerminateInstances").is_empty());
}

#[test]
fn findings_are_there_for_programs_too() {
    let desk = Desk::new(ONE_POOL);
    let run = desk.run(&["doctor", "--aws", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let findings = document["findings"].as_array().unwrap();
    let fails: Vec<_> = findings.iter().filter(|finding| finding["level"] == "fail").collect();
    assert_eq!(fails.len(), 1, "{}", run.text());
    assert!(fails[0]["hint"].as_str().unwrap().contains("broker init"));
}
