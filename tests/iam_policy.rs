//! The IAM policies in `nix/` against the calls that the code makes: neither one too few nor one too many.

#![cfg(feature = "ec2")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nix_broker::provider::ec2::api::Action;
use nix_broker::provider::ec2::permissions::need;
use serde_json::Value;

/// AWS' limit on a managed policy, white space not counted.
const MAX_POLICY: usize = 6144;

const POLICIES: [&str; 4] =
    ["iam-policy.json", "iam-policy-init.json", "iam-policy-image.json", "iam-policy-expiry.json"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn policy(name: &str) -> Value {
    let text = fs::read_to_string(root().join("nix").join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// One value or a list of them.
fn strings(value: &Value) -> Vec<&str> {
    match value.as_array() {
        Some(all) => all.iter().map(|one| one.as_str().unwrap()).collect(),
        None => vec![value.as_str().unwrap()],
    }
}

fn statements(policy: &Value) -> &Vec<Value> {
    policy["Statement"].as_array().unwrap()
}

fn actions(policy: &Value) -> BTreeSet<String> {
    let all = statements(policy).iter().flat_map(|statement| strings(&statement["Action"]));
    all.map(str::to_owned).collect()
}

fn needed(is_needed: impl Fn(Action) -> bool) -> BTreeSet<String> {
    let needed = Action::ALL.iter().filter(|action| is_needed(**action));
    needed.map(|action| format!("{}:{action}", action.service())).collect()
}

#[test]
fn the_brokers_policy_allows_what_the_broker_does_and_no_more() {
    assert_eq!(actions(&policy("iam-policy.json")), needed(|action| need(action).by_broker));
}

#[test]
fn the_policy_for_init_allows_what_init_does_and_no_more() {
    assert_eq!(actions(&policy("iam-policy-init.json")), needed(|action| need(action).by_init));
}

#[test]
fn the_policy_for_images_allows_what_broker_image_does_and_no_more() {
    assert_eq!(actions(&policy("iam-policy-image.json")), needed(|action| need(action).by_image));
}

/// A schedule says as which role it acts, and whoever makes it must be allowed to pass that on.
#[test]
fn the_policy_for_expiry_allows_schedules_of_ours_as_one_role_and_no_more() {
    let policy = policy("iam-policy-expiry.json");
    let mut allowed = actions(&policy);
    assert!(allowed.remove("iam:PassRole"));
    assert_eq!(allowed, needed(|action| need(action).by_expiry));
    for statement in statements(&policy) {
        let resources = strings(&statement["Resource"]);
        if strings(&statement["Action"]) == ["iam:PassRole"] {
            assert_eq!(resources, ["arn:aws:iam::*:role/nix-broker-expiry"]);
            let condition = &statement["Condition"]["StringEquals"]["iam:PassedToService"];
            assert_eq!(condition, "scheduler.amazonaws.com");
        } else {
            // As `api/schedules.rs` names them: after their instances.
            assert_eq!(resources, ["arn:aws:scheduler:*:*:schedule/default/nix-broker-i-*"]);
        }
    }
}

/// The role that AWS takes on when a schedule's time has come.
#[test]
fn the_role_of_expiry_ends_builders_for_the_scheduler_of_one_account_and_nothing_else() {
    let [may, trusts] = [policy("expiry-role.json"), policy("expiry-role-trust.json")];
    let [statement] = &statements(&may)[..] else { panic!("{may:#}") };
    assert_eq!(strings(&statement["Action"]), ["ec2:TerminateInstances"]);
    assert_eq!(statement["Condition"]["StringEquals"]["aws:ResourceTag/ManagedBy"], "nix-broker");
    let [statement] = &statements(&trusts)[..] else { panic!("{trusts:#}") };
    assert_eq!(strings(&statement["Action"]), ["sts:AssumeRole"]);
    assert_eq!(statement["Principal"], serde_json::json!({ "Service": "scheduler.amazonaws.com" }));
    // docs/aws.md puts the account there.
    assert_eq!(statement["Condition"]["StringEquals"]["aws:SourceAccount"], "ACCOUNT");
}

/// `describe_vpcs` as `DescribeVpcs`.
fn camel(name: &str) -> String {
    name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

/// Every operation of the SDK that the facade asks for: `client().NAME()` or `client.NAME()`, over line breaks.
fn operations(code: &str) -> BTreeSet<String> {
    let code: String = code.split_whitespace().collect();
    let mut found = BTreeSet::new();
    for marker in ["client().", "client."] {
        for (at, _) in code.match_indices(marker) {
            let name: String = code[at + marker.len()..]
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect();
            if code[at + marker.len() + name.len()..].starts_with("()") && name.contains('_') {
                found.insert(camel(&name));
            }
        }
    }
    found
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn every_request_in_the_code_is_an_action_in_the_table_and_the_other_way_round() {
    let mut called: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    let mut declared = BTreeSet::new();
    for path in sources(&root().join("src")) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let code = text.split("#[cfg(test)]").next().unwrap();
        if !code.contains("aws_sdk_") && !path.starts_with(root().join("src/provider/ec2/api")) {
            continue;
        }
        assert!(
            path.starts_with(root().join("src/provider/ec2/api")),
            "{} names the SDK; only the facade may",
            path.display()
        );
        // A dry run asks about everything and does nothing.
        if path.ends_with("dry_run.rs") {
            continue;
        }
        for name in operations(code) {
            called.entry(name).or_default().insert(path.clone());
        }
        let code: String = code.split_whitespace().collect();
        for (at, _) in code.match_indices("Action::") {
            let name: String = code[at + 8..].chars().take_while(char::is_ascii_alphanumeric).collect();
            declared.insert(name);
        }
    }
    declared.retain(|name| name != "ALL");
    let table: BTreeSet<String> = Action::ALL.iter().map(|action| action.name().to_owned()).collect();
    assert_eq!(called.keys().cloned().collect::<BTreeSet<_>>(), table, "{called:?}");
    assert_eq!(declared, table);
}

#[test]
fn what_changes_something_is_bound_to_our_tag() {
    for name in POLICIES {
        for statement in statements(&policy(name)) {
            let sid = statement["Sid"].as_str().unwrap();
            assert_eq!(statement["Effect"], "Allow", "{sid}");
            let condition = statement.get("Condition").map(Value::to_string).unwrap_or_default();
            for action in strings(&statement["Action"]) {
                let only_looks = action.starts_with("ec2:Describe");
                // Neither an image nor somebody's VPC carries our tag; what is made from or in them must.
                let is_of_others =
                    ["LaunchFrom", "MakeInAnyVpc", "MakeADefaultVpcWhereThereIsNone"].contains(&sid);
                // Schedules have no tags, and a role is not ours: they are known by name, as the test above has it.
                let is_by_name = action.starts_with("scheduler:") || action == "iam:PassRole";
                let is_bound = is_by_name
                    || condition.contains("/ManagedBy\":\"nix-broker\"")
                    || condition.contains("\"ec2:CreateAction\"");
                assert!(only_looks || is_of_others || is_bound, "{name}: {sid} allows {action} on anything");
                assert!(!action.contains('*'), "{name}: {sid}");
                assert!(
                    only_looks || sid == "MakeADefaultVpcWhereThereIsNone" || statement["Resource"] != "*",
                    "{name}: {sid} allows {action} on every kind of thing"
                );
            }
        }
    }
}

#[test]
fn the_policies_fit_into_what_aws_takes() {
    for name in POLICIES {
        let text = fs::read_to_string(root().join("nix").join(name)).unwrap();
        let size = text.chars().filter(|c| !c.is_whitespace()).count();
        assert!(size <= MAX_POLICY, "{name}: {size}");
        assert_eq!(policy(name)["Version"], "2012-10-17");
        let sids: Vec<_> = statements(&policy(name)).iter().map(|it| it["Sid"].to_string()).collect();
        assert_eq!(sids.iter().collect::<BTreeSet<_>>().len(), sids.len(), "{name}");
        assert!(sids.iter().all(|sid| sid.trim_matches('"').chars().all(|c| c.is_ascii_alphanumeric())));
    }
}
