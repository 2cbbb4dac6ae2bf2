//! The facade as a program on a machine has it: environment, profiles, a real socket.
//!
//! A test may not change its own environment, so each of these starts this test binary again with another one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix_broker::provider::ec2::api::Api;

use super::order;
use crate::fake_ec2::http::{Server, serve};
use crate::fake_ec2::{FakeEc2, Fault, Refusal};

/// Arguments and answer of the child go through these.
const PROFILE: &str = "EC2_API_TEST_PROFILE";
const ANSWER: &str = "EC2_API_TEST_ANSWER";

/// Not a test by itself: what the children do.
#[tokio::test]
#[ignore = "the others start it"]
async fn child() {
    let profile = std::env::var(PROFILE).ok();
    let answer = match Api::connect(profile.as_deref(), None).await {
        Err(error) => format!("connect {:?}: {error}", error.class),
        Ok(api) => match api.vpcs(&[]).await {
            Err(error) => format!("{} {:?}: {error}", api.region(), error.class),
            Ok(vpcs) => format!("{}: {} VPCs", api.region(), vpcs.len()),
        },
    };
    fs::write(std::env::var(ANSWER).unwrap(), answer).unwrap();
}

/// What a program with this environment and nothing else gets.
fn answer(home: &Path, profile: Option<&str>, environment: &[(&str, &str)]) -> String {
    let file = home.join("answer");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "programs::child", "--ignored", "--quiet"]).env_clear();
    command.env("HOME", home).env("AWS_EC2_METADATA_DISABLED", "true").env(ANSWER, &file);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(environment.iter().copied());
    if let Some(profile) = profile {
        command.env(PROFILE, profile);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    fs::read_to_string(file).unwrap()
}

fn account() -> (FakeEc2, Server, tempfile::TempDir) {
    let fake = FakeEc2::on_real_time(1);
    let server = serve(&fake);
    (fake, server, tempfile::tempdir().unwrap())
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIDTEST"), ("AWS_SECRET_ACCESS_KEY", "not secret")];

#[test]
fn the_environment_names_endpoint_region_and_keys() {
    let (fake, server, home) = account();
    let url = server.url();
    let mut environment = KEYS.to_vec();
    environment.extend([("AWS_ENDPOINT_URL_EC2", url.as_str()), ("AWS_REGION", "us-east-1")]);
    assert_eq!(answer(home.path(), None, &environment), "us-east-1: 1 VPCs");
    assert_eq!(fake.seen()[0].region, "us-east-1");
}

#[test]
fn a_profile_names_endpoint_region_and_a_program_that_gives_keys() {
    let (_fake, server, home) = account();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let keys = r#"{"Version": 1, "AccessKeyId": "AKIDTEST", "SecretAccessKey": "not secret"}"#;
    fs::write(home.path().join("keys.json"), keys).unwrap();
    let config = format!(
        "[profile work]\nregion = eu-west-1\ncredential_process = cat {}/keys.json\nendpoint_url = {}\n\
         [profile empty]\nregion = eu-west-1\n[profile nowhere]\n\
         [profile login]\nregion = eu-west-1\nsso_session = corp\nsso_account_id = 111122223333\n\
         sso_role_name = builder\n[sso-session corp]\nsso_region = eu-west-1\n\
         sso_start_url = https://corp.invalid/start\nsso_registration_scopes = sso:account:access\n",
        home.path().display(),
        server.url()
    );
    fs::write(home.path().join(".aws/config"), config).unwrap();
    assert_eq!(answer(home.path(), Some("work"), &[]), "eu-west-1: 1 VPCs");
    assert_eq!(answer(home.path(), None, &[("AWS_PROFILE", "work")]), "eu-west-1: 1 VPCs");

    let empty = answer(home.path(), Some("empty"), &[]);
    assert!(empty.starts_with("connect Identity") && empty.contains("`empty`"), "{empty}");
    let unknown = answer(home.path(), Some("unknown"), &[("AWS_REGION", "eu-west-1")]);
    assert!(unknown.starts_with("connect Identity") && unknown.contains("unknown"), "{unknown}");
    let nowhere = answer(home.path(), Some("nowhere"), &[]);
    assert!(nowhere.starts_with("connect Config") && nowhere.contains("`nowhere`"), "{nowhere}");
    assert!(nowhere.contains("AWS_REGION"), "{nowhere}");
    let login = answer(home.path(), Some("login"), &[]);
    assert!(login.starts_with("connect Identity"), "{login}");
    assert!(login.contains("aws sso login --profile login"), "{login}");
}

#[test]
fn an_sso_session_that_has_expired_asks_for_a_login() {
    let (_fake, _server, home) = account();
    let cache = home.path().join(".aws/sso/cache");
    fs::create_dir_all(&cache).unwrap();
    let config = "[profile login]\nregion = eu-west-1\nsso_session = corp\nsso_account_id = 111122223333\n\
                  sso_role_name = builder\n[sso-session corp]\nsso_region = eu-west-1\n\
                  sso_start_url = https://corp.invalid/start\nsso_registration_scopes = sso:account:access\n";
    fs::write(home.path().join(".aws/config"), config).unwrap();
    // The name of the file is the SHA-1 of the session's.
    let name: String = {
        use sha1::Digest as _;
        sha1::Sha1::digest(b"corp").iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let token = r#"{"accessToken": "xyz", "expiresAt": "2020-01-01T00:00:00Z", "region": "eu-west-1",
                    "startUrl": "https://corp.invalid/start"}"#;
    fs::write(cache.join(format!("{name}.json")), token).unwrap();
    let login = answer(home.path(), Some("login"), &[]);
    assert!(login.starts_with("connect Identity"), "{login}");
    assert!(login.contains("aws sso login --profile login"), "{login}");
    assert!(!login.contains("xyz"), "{login}");
}

#[test]
fn without_anything_it_says_what_to_set() {
    let (_fake, _server, home) = account();
    let nothing = answer(home.path(), None, &[]);
    assert!(nothing.starts_with("connect Config") && nothing.contains("AWS_REGION"), "{nothing}");
    let keyless = answer(home.path(), None, &[("AWS_REGION", "eu-west-1")]);
    assert!(keyless.starts_with("connect Identity"), "{keyless}");
    for words in ["no AWS credentials", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "aws sso login"] {
        assert!(keyless.contains(words), "{keyless}");
    }
    let mut odd = KEYS.to_vec();
    odd.push(("AWS_REGION", "eu-west-1/../../evil"));
    let odd = answer(home.path(), None, &odd);
    assert!(odd.starts_with("connect Config") && odd.contains("not the name of a region"), "{odd}");
}

#[test]
fn a_region_that_does_not_exist_is_a_name_that_cannot_be_resolved() {
    let (_fake, _server, home) = account();
    let mut environment = KEYS.to_vec();
    environment.push(("AWS_REGION", "eu-nowhere-9"));
    let unknown = answer(home.path(), None, &environment);
    assert!(unknown.starts_with("eu-nowhere-9 Transient"), "{unknown}");
    assert!(unknown.contains("is `eu-nowhere-9` a region"), "{unknown}");
}

#[test]
fn a_session_that_ends_later_is_told_by_the_call() {
    let (fake, server, home) = account();
    let url = server.url();
    let expired = Refusal::new(400, "ExpiredToken", "The security token included in the request is expired");
    fake.faults(|faults| faults.plan("*", 1, Fault::Refuse(expired)));
    let mut environment = KEYS.to_vec();
    environment.extend([
        ("AWS_SESSION_TOKEN", "token"),
        ("AWS_ENDPOINT_URL_EC2", url.as_str()),
        ("AWS_REGION", "us-east-1"),
    ]);
    let ended = answer(home.path(), None, &environment);
    assert!(ended.starts_with("us-east-1 Identity") && ended.contains("aws sso login"), "{ended}");
}

#[tokio::test]
async fn launches_and_lost_answers_are_the_same_over_a_socket() {
    let fake = FakeEc2::on_real_time(100);
    let server = serve(&fake);
    let api = Api::at_endpoint(&server.url(), super::REGION);
    fake.faults(|faults| {
        faults.plan("RunInstances", 1, Fault::LostAfter);
        faults.plan("RunInstances", 1, Fault::LostBefore);
    });
    let order = order(&fake, "token-1");
    let seen = api.run_instance(&order).await.unwrap();
    assert_eq!(fake.instances().iter().map(|instance| &instance.id).collect::<Vec<_>>(), [&seen.id]);
    assert_eq!(fake.instance(&seen.id).unwrap().user_data, order.user_data);
    let calls = fake.seen_of("RunInstances");
    assert!(calls.len() >= 3 && calls.windows(2).all(|pair| pair[0].form == pair[1].form));
    assert!(api.terminate(std::slice::from_ref(&seen.id)).await[&seen.id].is_ok());
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !fake.alive().is_empty() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nobody_at_the_endpoint_is_told_so_and_surely_did_nothing() {
    // A port that was free a moment ago.
    let url = serve(&FakeEc2::on_real_time(1)).url();
    let fake = FakeEc2::on_real_time(1);
    let api = Api::at_endpoint(&url, super::REGION);
    let error = api.run_instance(&order(&fake, "token-1")).await.unwrap_err();
    assert!(!error.may_have_acted, "{error}");
    let shown = error.to_string();
    assert!(shown.contains("the connection is refused") && shown.contains("AWS_ENDPOINT_URL_EC2"), "{shown}");
}
