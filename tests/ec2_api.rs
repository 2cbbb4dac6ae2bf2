//! The facade over EC2, against an EC2 of our own (every fault, simulated time) and against moto (an independent reading
//! of the same protocol).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

#[path = "common/disk.rs"]
mod disk;
#[path = "common/fake_ec2/mod.rs"]
mod fake_ec2;

#[path = "ec2_api/chaos.rs"]
mod chaos;
#[path = "ec2_api/errors.rs"]
mod errors;
#[path = "ec2_api/images.rs"]
mod images;
#[path = "ec2_api/life.rs"]
mod life;
#[path = "ec2_api/lists.rs"]
mod lists;
#[path = "ec2_api/moto.rs"]
mod moto;
#[path = "ec2_api/moto_images.rs"]
mod moto_images;
#[path = "ec2_api/moto_network.rs"]
mod moto_network;
#[path = "ec2_api/programs.rs"]
mod programs;

use std::collections::BTreeMap;

use nix_broker::model::ec2::Market;
use nix_broker::provider::ec2::api::{Api, RunDisk, RunOrder};

use fake_ec2::FakeEc2;

const REGION: &str = "eu-central-1";

/// The facade on a new account, both on simulated time.
fn simulated() -> (FakeEc2, Api) {
    let fake = FakeEc2::on_tokio_time();
    let api = Api::over(fake.wire(), REGION, 7);
    (fake, api)
}

fn strings<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// An order that the fake takes as it is.
fn order(fake: &FakeEc2, token: &str) -> RunOrder {
    let (_, subnets) = fake.default_network(REGION);
    let (zone, subnet) = subnets[0].clone();
    RunOrder {
        region: REGION.into(),
        client_token: token.into(),
        image: fake.add_image(
            "427812963091",
            "nixos/26.05.1-x86_64-linux",
            "x86_64",
            "2026-11-15T00:00:00.000Z",
        ),
        root_device: "/dev/xvda".into(),
        instance_type: "c6a.4xlarge".into(),
        subnet,
        zone,
        security_groups: vec![fake.default_group(REGION)],
        user_data: "#!/bin/sh\n: 'a secret key'\necho \"$HOME\" `id` & \u{2603} +%=\n".into(),
        market: Market::OnDemand,
        max_price: None,
        public_ip: true,
        private_ip: None,
        disk: RunDisk { size: 120, throughput: 500, iops: 4000 },
        instance_store: 0,
        nested_virt: false,
        hibernation: false,
        tags: BTreeMap::from([
            ("nix-broker:broker".to_owned(), "b-1".to_owned()),
            ("Name".to_owned(), "builder <one> & \"two\"".to_owned()),
        ]),
    }
}
