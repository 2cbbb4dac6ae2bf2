//! The facade against moto, which reads requests and writes answers as others understood them: what only agrees with an
//! EC2 of our own is found here. What moto cannot do (tokens, time, faults) is tested against ours.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix_broker::model::ec2::Market;
use nix_broker::model::{HourlyRate, Usd};
use nix_broker::provider::ec2::api::{
    Action, Api, DryRunAbout, ErrorClass, InstanceState, Permission, RunDisk, RunOrder,
};

use super::strings;

/// A server on a free port of the loopback interface; it ends with its standard input, hence with this process.
const PROGRAM: &str = r#"
import os, sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("listening", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
os._exit(0)
"#;

struct Moto {
    url: String,
    _process: Child,
    _images: tempfile::NamedTempFile,
}

fn image(name: &str, system: &str, architecture: &str, day: u32) -> serde_json::Value {
    serde_json::json!({
        "ami_id": format!("ami-{day:02}{architecture:0>15}").replace('_', "0"),
        "name": format!("nixos/{name}-{system}"),
        "description": "NixOS",
        "owner_id": "427812963091",
        "public": true,
        "virtualization_type": "hvm",
        "architecture": architecture,
        "state": "available",
        "platform": null,
        "image_type": "machine",
        "hypervisor": "xen",
        "root_device_name": "/dev/xvda",
        "root_device_type": "ebs",
        "sriov": "simple",
        "creation_date": format!("2026-11-{day:02}T01:02:03.000Z"),
    })
}

/// The one server of this process.
pub(super) fn url() -> &'static str {
    static MOTO: OnceLock<Moto> = OnceLock::new();
    let moto = MOTO.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/moto.sh");
        let python = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(python.status.success(), "moto cannot be had");
        let python = String::from_utf8(python.stdout).unwrap();
        let images = tempfile::NamedTempFile::new().unwrap();
        let list = [
            image("26.05.1.aaaaaaaaaaaa", "x86_64-linux", "x86_64", 1),
            image("26.05.2.bbbbbbbbbbbb", "x86_64-linux", "x86_64", 8),
            image("26.05.2.bbbbbbbbbbbb", "aarch64-linux", "arm64", 8),
        ];
        serde_json::to_writer(images.as_file(), &list).unwrap();
        let mut process = Command::new(python.trim())
            .args(["-c", PROGRAM])
            .env("MOTO_AMIS_PATH", images.path())
            .env("MOTO_ENABLE_AMI_VALIDATION", "true")
            .env("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "true")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port =
            lines.find_map(|line| line.unwrap().strip_prefix("listening ").map(str::to_owned)).unwrap();
        Moto { url: format!("http://127.0.0.1:{port}"), _process: process, _images: images }
    });
    &moto.url
}

/// Each test has a region of its own: nothing of one is seen in another.
fn api(region: &str) -> Api {
    Api::at_endpoint(url(), region)
}

pub(super) async fn order(api: &Api, token: &str) -> RunOrder {
    let images = api.images("427812963091", "nixos/26.05*", "x86_64").await.unwrap();
    let vpc = api.vpcs(&[("is-default", &strings(["true"]))]).await.unwrap().remove(0);
    let subnet = api.subnets(&[("vpc-id", &strings([&vpc.id]))]).await.unwrap().remove(0);
    let groups = api.security_groups(&[("vpc-id", &strings([&vpc.id]))]).await.unwrap();
    RunOrder {
        region: api.region().into(),
        client_token: token.into(),
        image: images[0].id.clone(),
        root_device: images[0].root_device.clone(),
        instance_type: "c6a.4xlarge".into(),
        subnet: subnet.id,
        zone: subnet.zone,
        security_groups: groups.into_iter().map(|group| group.id).collect(),
        user_data: "#!/bin/sh\necho hello\n".into(),
        market: Market::OnDemand,
        max_price: None,
        public_ip: true,
        private_ip: None,
        disk: RunDisk { size: 77, throughput: 500, iops: 4000 },
        instance_store: 0,
        nested_virt: false,
        hibernation: false,
        tags: BTreeMap::from([
            ("nix-broker:broker".to_owned(), "b-1".to_owned()),
            ("Name".to_owned(), "builder <one> & \"two\" \u{2603}".to_owned()),
        ]),
    }
}

#[tokio::test]
async fn an_instance_lives_and_ends_as_moto_sees_it() {
    let api = api("eu-central-1");
    let order = order(&api, "token-1").await;
    let launched = api.run_instance(&order).await.unwrap();
    assert_eq!(launched.tags, order.tags);
    assert_eq!((&launched.instance_type, &launched.zone), (&order.instance_type, &order.zone));
    assert_eq!((&launched.subnet, &launched.image), (&order.subnet, &order.image));
    assert_eq!(launched.market, Market::OnDemand);
    let id = launched.id.clone();

    let mine = [("tag:nix-broker:broker", &strings(["b-1"])[..])];
    let seen = api.instances(&mine).await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!((&seen[0].id, seen[0].state), (&id, InstanceState::Running));
    assert!(seen[0].launch_time > 1_700_000_000);
    assert!(seen[0].private_ip.is_some());

    let volumes = api.volumes(&mine).await.unwrap();
    assert_eq!(volumes.len(), 1, "the volume has the tags too");
    assert!(!volumes[0].is_available);
    assert_eq!(volumes[0].size, 77);

    api.tag(std::slice::from_ref(&id), &[("nix-broker:expires", "123")]).await.unwrap();
    assert_eq!(api.instances(&mine).await.unwrap()[0].tags["nix-broker:expires"], "123");
    api.close_metadata(&id).await.unwrap();
    assert!(api.console_output(&id).await.unwrap().is_some());

    assert!(api.stop(std::slice::from_ref(&id), true).await[&id].is_ok());
    assert_eq!(api.instances(&mine).await.unwrap()[0].state, InstanceState::Stopped);
    let stopped = [("instance-state-name", &strings(["stopped"])[..])];
    assert_eq!(api.instances(&stopped).await.unwrap().len(), 1);
    assert!(api.start(std::slice::from_ref(&id)).await[&id].is_ok());

    let unknown = "i-0123456789abcdef0".to_owned();
    let answers = api.terminate(&[id.clone(), unknown.clone()]).await;
    assert!(answers[&id].is_ok(), "{answers:?}");
    assert_eq!(answers[&unknown].as_ref().unwrap_err().class, ErrorClass::NotFound);
    assert_eq!(api.instances(&mine).await.unwrap()[0].state, InstanceState::Terminated);
    assert!(api.volumes(&mine).await.unwrap().is_empty(), "it took its volume along");
    // Ending it again succeeds on EC2. moto looks for the network interface that it has already taken away.
    let again = api.terminate(std::slice::from_ref(&id)).await[&id].clone().unwrap_err();
    assert_eq!(again.code.as_deref(), Some("InvalidNetworkInterfaceID.NotFound"), "{again}");
}

#[tokio::test]
async fn spot_nested_virtualisation_and_a_private_address_are_understood() {
    let api = api("us-west-2");
    let base = order(&api, "token-1").await;
    let spot = RunOrder {
        market: Market::Spot,
        max_price: Some(HourlyRate(Usd::from_micros(500_000))),
        ..base.clone()
    };
    assert_eq!(api.run_instance(&spot).await.unwrap().market, Market::Spot);
    let nested = RunOrder { instance_type: "c7i.large".into(), nested_virt: true, hibernation: true, ..base };
    let subnet = api.subnets(&[("subnet-id", &strings([&nested.subnet]))]).await.unwrap().remove(0);
    let wanted = format!("{}77", subnet.cidr.split_once("0/").unwrap().0);
    let nested = RunOrder { private_ip: Some(wanted.clone()), ..nested };
    assert_eq!(api.run_instance(&nested).await.unwrap().private_ip, Some(wanted));
}

#[tokio::test]
async fn images_and_types_are_those_that_moto_knows() {
    let api = api("eu-west-1");
    let images = api.images("427812963091", "nixos/26.05*", "x86_64").await.unwrap();
    assert_eq!(images.len(), 2);
    let newest = images.iter().max_by(|a, b| a.creation_date.cmp(&b.creation_date)).unwrap();
    assert_eq!(newest.name, "nixos/26.05.2.bbbbbbbbbbbb-x86_64-linux");
    assert!(newest.is_available);
    assert_eq!(newest.root_device, "/dev/xvda");
    assert_eq!(api.image(&newest.id).await.unwrap().id, newest.id);
    assert!(api.image("ami-0123456789abcdef0").await.unwrap_err().is_image_gone());

    let all = api.type_facts(&strings(["c*"])).await.unwrap();
    assert!(all.len() > 100, "more than a page: {}", all.len());
    let names = strings(["c6a.4xlarge", "c7i.4xlarge", "c7g.4xlarge", "c6id.4xlarge"]);
    let facts = api.type_facts(&names).await.unwrap();
    let fact = |name: &str| facts.iter().find(|kind| kind.name == name).unwrap();
    assert_eq!((fact("c6a.4xlarge").vcpus, fact("c6a.4xlarge").cores), (16, 8));
    assert_eq!((fact("c7g.4xlarge").vcpus, fact("c7g.4xlarge").cores), (16, 16));
    assert_eq!(fact("c7g.4xlarge").arch, ["arm64"]);
    assert_eq!(fact("c6a.4xlarge").memory_mib, 32768);
    assert!(fact("c7i.4xlarge").nested_virt && !fact("c6a.4xlarge").nested_virt);
    assert_eq!((fact("c6id.4xlarge").nvme_gb, fact("c6a.4xlarge").nvme_gb), (950, 0));
    assert!(fact("c6a.4xlarge").spot && !fact("c6a.4xlarge").bare_metal);

    let zones = api.zones().await.unwrap();
    let offers = api.offerings(&names).await.unwrap();
    assert!(offers.iter().all(|(zone, _)| zones.iter().any(|known| known.name == *zone)));
    assert!(offers.iter().any(|(_, name)| name == "c6a.4xlarge"));
}

#[tokio::test]
async fn the_table_of_types_says_what_moto_says() {
    let api = api("us-east-1");
    let table = include_str!("../../src/catalog/ec2-types.csv");
    let lines: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .skip(1)
        .map(|line| line.split(',').collect())
        .collect();
    let names: Vec<String> = lines.iter().map(|line| line[0].to_owned()).collect();
    let facts = api.type_facts(&names).await.unwrap();
    assert_eq!(facts.len(), lines.len());
    for line in lines {
        let fact = facts.iter().find(|fact| fact.name == line[0]).unwrap();
        assert_eq!(fact.vcpus.to_string(), line[1], "{}", line[0]);
        assert_eq!(fact.cores.to_string(), line[2], "{}", line[0]);
        assert_eq!(fact.memory_mib.to_string(), line[3], "{}", line[0]);
        assert_eq!(fact.arch[0], line[4], "{}", line[0]);
        assert_eq!(fact.nested_virt, line[7] == "1", "{}", line[0]);
        assert_eq!(fact.nvme_gb.to_string(), line[8], "{}", line[0]);
    }
}

#[tokio::test]
async fn prices_of_spot_are_read_where_there_are_any() {
    let api = api("us-east-2");
    let prices = api.spot_prices(&strings(["c6a.large"]), 1_795_219_200).await.unwrap();
    for offer in prices {
        assert_eq!(offer.instance_type, "c6a.large");
        assert!(offer.zone.starts_with("us-east-2"));
    }
}

#[tokio::test]
async fn the_network_is_made_and_removed() {
    let api = api("eu-north-1");
    let tags = BTreeMap::from([("nix-broker:broker".to_owned(), "b-1".to_owned())]);
    let mine = [("tag:nix-broker:broker", &strings(["b-1"])[..])];
    let vpc = api.vpcs(&[("is-default", &strings(["true"]))]).await.unwrap().remove(0);
    assert_eq!(vpc.cidrs, ["172.31.0.0/16"]);
    let group = api.create_security_group(&vpc.id, "nix-broker", "SSH from here", &tags).await.unwrap();
    let twice = api.create_security_group(&vpc.id, "nix-broker", "SSH from here", &tags).await.unwrap_err();
    assert_eq!(twice.code.as_deref(), Some("InvalidGroup.Duplicate"));
    api.authorize_ingress(&group, "198.51.100.7/32", "this broker").await.unwrap();
    api.authorize_ingress(&group, "198.51.100.7/32", "this broker").await.unwrap();
    let seen = api.security_groups(&mine).await.unwrap().remove(0);
    assert_eq!((&seen.id, &seen.vpc, seen.ingress.len()), (&group, &vpc.id, 1));
    let rule = &seen.ingress[0];
    assert_eq!((rule.protocol.as_str(), rule.from_port, rule.to_port), ("tcp", 22, 22));
    assert_eq!((rule.source.as_str(), rule.description.as_str()), ("198.51.100.7/32", "this broker"));
    api.revoke_ingress(&group, "198.51.100.7/32").await.unwrap();
    api.revoke_ingress(&group, "198.51.100.7/32").await.unwrap();
    assert!(api.security_groups(&mine).await.unwrap()[0].ingress.is_empty());
    api.delete_security_group(&group).await.unwrap();
    api.delete_security_group(&group).await.unwrap();

    let zone = &api.zones().await.unwrap()[0].name;
    let subnet = api.create_subnet(&vpc.id, zone, "172.31.200.0/24", &tags).await.unwrap();
    let seen = api.subnets(&mine).await.unwrap().remove(0);
    assert_eq!((&seen.id, &seen.zone, seen.cidr.as_str()), (&subnet, zone, "172.31.200.0/24"));
    assert!(seen.free_addresses > 200 && !seen.is_default);
    let conflict = api.create_subnet(&vpc.id, zone, "172.31.200.0/25", &tags).await.unwrap_err();
    assert_eq!(conflict.class, ErrorClass::Config);
    api.delete_subnet(&subnet).await.unwrap();
    api.delete_subnet(&subnet).await.unwrap();
    api.delete_volume("vol-0123456789abcdef0").await.unwrap();
}

#[tokio::test]
async fn dry_runs_of_what_moto_checks_are_allowed_and_none_of_any_action_is_an_error() {
    let api = api("sa-east-1");
    let order = order(&api, "token-1").await;
    let about = DryRunAbout { order, instance: None, vpc: None, volume: None };
    let mut allowed = 0;
    for action in Action::ALL {
        match api.dry_run(*action, &about).await.unwrap() {
            Permission::Allowed => allowed += 1,
            Permission::Denied { reason } => panic!("{action}: {reason}"),
            // moto does not look at DryRun everywhere.
            Permission::Done => {}
            // Nor does anybody ask about what only `broker image` does.
            Permission::Unclear { reason, code } => assert!(code.is_some(), "{action}: {reason}"),
        }
    }
    assert!(allowed >= 5, "{allowed}");
    assert_eq!(api.dry_run(Action::RunInstances, &about).await.unwrap(), Permission::Allowed);
    assert!(api.instances(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn refusals_of_moto_have_the_right_class() {
    let api = api("ap-south-1");
    let base = order(&api, "token-1").await;
    let gone = RunOrder { image: "ami-0123456789abcdef0".into(), ..base.clone() };
    let error = api.run_instance(&gone).await.unwrap_err();
    assert!(error.is_image_gone() && error.class == ErrorClass::Config, "{error}");
    assert!(error.request_id.is_some(), "{error}");
    let kind = RunOrder { instance_type: "q9.large".into(), ..base.clone() };
    assert_eq!(api.run_instance(&kind).await.unwrap_err().class, ErrorClass::Config);
    let subnet = RunOrder { subnet: "subnet-0123456789abcdef0".into(), ..base.clone() };
    let error = api.run_instance(&subnet).await.unwrap_err();
    assert_eq!((error.class, error.may_have_acted), (ErrorClass::Config, false), "{error}");
    let unknown = strings(["i-0123456789abcdef0"]);
    let answers = api.start(&unknown).await;
    assert_eq!(answers[&unknown[0]].as_ref().unwrap_err().class, ErrorClass::NotFound);
    // A filter that moto has not, once there is something to filter: an HTML page with status 500.
    api.run_instance(&base).await.unwrap();
    let page = api.instances(&[("launch-time", &strings(["2026*"]))]).await.unwrap_err();
    assert_eq!(page.class, ErrorClass::Unknown);
    assert!(page.to_string().contains("an HTML page"), "{page}");
}
