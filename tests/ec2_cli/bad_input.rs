//! What people get to read when something about AWS is wrong: always what to do, and nothing is done.

use super::{Desk, ONE_POOL, REGION};
use crate::fake_ec2::{Fault, Refusal};

/// All three commands in this situation: each fails, says these words, and does nothing.
fn each_says(make: impl Fn() -> Desk, words: &[&str]) {
    for args in [&["init", "--yes"][..], &["sweep", "--everything", "--yes"], &["doctor", "--aws"]] {
        let desk = make();
        let said = desk.run(args).ended(1);
        // Wrapped lines and causes read as one text.
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(said.contains(word), "{args:?} does not say `{word}`: {said}");
        }
        assert_eq!(desk.deeds(), [""; 0], "{args:?}");
        assert!(desk.fake.instances().is_empty(), "{args:?}");
    }
}

fn desk() -> Desk {
    Desk::new(ONE_POOL).with("AWS_REGION", REGION)
}

#[test]
fn no_credentials() {
    let make = || desk().with("AWS_ACCESS_KEY_ID", "").with("AWS_SECRET_ACCESS_KEY", "");
    each_says(make, &["there are no AWS credentials", "aws configure", "AWS_PROFILE"]);
}

#[test]
fn a_profile_that_does_not_exist() {
    let make = || {
        let none = desk().with("AWS_ACCESS_KEY_ID", "").with("AWS_SECRET_ACCESS_KEY", "");
        none.with("AWS_PROFILE", "nobody")
    };
    each_says(make, &["nobody", "aws configure"]);
}

#[test]
fn a_session_that_has_expired() {
    let make = || {
        let desk = desk();
        let words = "Request has expired.";
        let refusal = Refusal::new(400, "ExpiredToken", words);
        desk.fake.faults(|faults| faults.plan("*", 1000, Fault::Refuse(refusal)));
        desk
    };
    each_says(make, &["the session has ended", "aws sso login"]);
}

#[test]
fn a_key_that_aws_does_not_know() {
    let make = || {
        let desk = desk();
        let words = "AWS was not able to validate the provided access credentials";
        let refusal = Refusal::new(401, "AuthFailure", words);
        desk.fake.faults(|faults| faults.plan("*", 1000, Fault::Refuse(refusal)));
        desk
    };
    each_says(make, &["not able to validate", "the key was deleted or mistyped"]);
}

#[test]
fn a_region_that_does_not_exist() {
    let unknown = ONE_POOL.replace("eu-central-1", "eu-nowhere-7");
    let make = || Desk::new(&unknown).with("AWS_REGION", "eu-nowhere-7");
    each_says(make, &["eu-nowhere-7"]);
}

#[test]
fn an_endpoint_that_answers_html() {
    let make = || {
        let desk = desk();
        desk.fake.faults(|faults| faults.plan("*", 1000, Fault::html(200)));
        desk
    };
    each_says(make, &["an HTML page", "AWS_ENDPOINT_URL_EC2"]);
}

#[test]
fn an_endpoint_where_nobody_listens() {
    let make = || desk().with("AWS_ENDPOINT_URL_EC2", "http://127.0.0.1:1");
    each_says(make, &["connection is refused", "AWS_ENDPOINT_URL_EC2"]);
}

#[test]
fn no_permission_to_look() {
    let make = || {
        let desk = desk();
        desk.fake.faults(|faults| {
            for action in ["DescribeInstances", "DescribeVpcs", "DescribeInstanceTypeOfferings"] {
                faults.deny(action);
            }
        });
        desk
    };
    for args in [&["init", "--yes"][..], &["sweep", "--yes"], &["doctor", "--aws"]] {
        let desk = make();
        let said = desk.run(args).ended(1);
        assert!(said.contains("ec2:Describe"), "{args:?}: {said}");
        assert!(!said.contains("x7Yqx7Yq"), "an encoded message reaches a person: {said}");
        assert_eq!(desk.deeds(), [""; 0], "{args:?}");
    }
}

#[test]
fn a_type_that_no_zone_offers() {
    let config = format!("{ONE_POOL}types = [\"c5.large\"]\n").replace("gccarch-znver3", "gccarch-skylake");
    let desk = Desk::new(&config);
    desk.fake.faults(|faults| {
        let nothing = "<DescribeInstanceTypeOfferingsResponse><requestId>r</requestId><instanceTypeOfferingSet/>\
                       </DescribeInstanceTypeOfferingsResponse>";
        let fault = Fault::Garbage { status: 200, body: nothing.to_owned() };
        faults.plan("DescribeInstanceTypeOfferings", 1000, fault);
    });
    let said = desk.run(&["init", "--yes"]).ended(1);
    assert!(said.contains("no zone of eu-central-1 offers") && said.contains("`types`"), "{said}");
    let said = desk.run(&["doctor", "--aws"]).ended(1);
    assert!(said.contains("no zone of eu-central-1 offers"), "{said}");
    assert_eq!(desk.deeds(), [""; 0]);
}
