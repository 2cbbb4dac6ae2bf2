//! The commands about AWS as people meet them: the real `broker` against an EC2 of our own on a socket of the test's own.

#![cfg(feature = "ec2")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

#[path = "common/disk.rs"]
mod disk;
#[path = "common/fake_ec2/mod.rs"]
mod fake_ec2;

#[path = "ec2_cli/bad_input.rs"]
mod bad_input;
#[path = "ec2_cli/doctor.rs"]
mod doctor;
#[path = "ec2_cli/image.rs"]
mod image;
#[path = "ec2_cli/init.rs"]
mod init;
#[path = "ec2_cli/network.rs"]
mod network;
#[path = "ec2_cli/sweep.rs"]
mod sweep;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, SystemTime};

use assert_cmd::Command;
use nix_broker::model::ec2::Market;
use nix_broker::provider::ec2::api::{Api, RunDisk, RunOrder};
use tempfile::TempDir;

use fake_ec2::FakeEc2;
use fake_ec2::http::{Server, serve};

const REGION: &str = "eu-central-1";
const BROKER: &str = "0123456789abcdef0123456789abcdef";
const OTHER_BROKER: &str = "fedcba9876543210fedcba9876543210";

const ONE_POOL: &str = r#"
[[pool]]
name = "zen3"
systems = ["x86_64-linux"]
features = ["gccarch-znver3"]
[pool.ec2]
region = "eu-central-1"
"#;

/// What a run of `broker` left behind.
#[derive(Debug)]
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    /// All of it, for a snapshot.
    fn text(&self) -> String {
        let mut text = format!("exit {}\n", self.code);
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !stream.is_empty() {
                text.push_str(&format!("--- {name}\n{stream}"));
            }
        }
        text
    }

    /// Both streams, and that it ended like this.
    fn ended(&self, code: i32) -> String {
        assert_eq!(self.code, code, "{}", self.text());
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// An account on AWS, and a command line that knows of nothing else.
struct Desk {
    dir: TempDir,
    fake: FakeEc2,
    server: Server,
    address_url: String,
    extra: Vec<(String, String)>,
}

impl Desk {
    /// With this configuration; this machine is seen at 198.51.100.7.
    fn new(config: &str) -> Self {
        // Twenty times as fast as life, so that what shuts down is terminated within a second or two.
        let fake = FakeEc2::on_real_time(20);
        let server = serve(&fake);
        let dir = tempfile::tempdir().unwrap();
        let desk =
            Self { dir, fake, server, address_url: address_service("198.51.100.7\n"), extra: Vec::new() };
        desk.configure(config);
        desk
    }

    /// Another configuration from here on.
    fn configure(&self, config: &str) {
        let state = format!("state-dir = \"{}\"\n", self.dir.path().join("state").display());
        fs::write(self.dir.path().join("config.toml"), state + config).unwrap();
    }

    /// The broker on this machine has this id.
    fn with_broker(self, id: &str) -> Self {
        let folder = self.dir.path().join("state/ec2");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("broker-id"), id).unwrap();
        self
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.extra.push((name.to_owned(), value.to_owned()));
        self
    }

    /// This machine is seen somewhere else from here on.
    fn moves_to(&mut self, address: &str) {
        self.address_url = address_service(address);
    }

    /// The program, with these arguments and this environment.
    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("broker"));
        command
            .args(args)
            .env_clear()
            .env("PATH", "/nonexistent")
            .env("HOME", self.dir.path())
            .env("NIX_BROKER_CONFIG", self.dir.path().join("config.toml"))
            .env("NIX_BROKER_ADDRESS_URL", &self.address_url)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL_EC2", self.server.url())
            .env("AWS_ENDPOINT_URL_EBS", self.server.url())
            .env("AWS_ACCESS_KEY_ID", "AKIDTEST")
            .env("AWS_SECRET_ACCESS_KEY", "not secret");
        for (name, value) in &self.extra {
            match value.as_str() {
                "" => command.env_remove(name),
                value => command.env(name, value),
            };
        }
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        let mut command = Command::from_std(self.command(args));
        let output = command.timeout(Duration::from_secs(100)).output().unwrap();
        let text = |bytes: &[u8]| {
            let here = self.dir.path().to_str().unwrap();
            String::from_utf8_lossy(bytes).replace(here, "DIR").replace(&self.server.url(), "URL")
        };
        Run {
            code: output.status.code().expect("an exit status"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Every request that was more than a look.
    fn deeds(&self) -> Vec<String> {
        let deeds =
            self.fake.seen().into_iter().filter(|seen| {
                !seen.action.starts_with("Describe") && seen.form.get("DryRun") != Some("true")
            });
        deeds.map(|seen| seen.action).collect()
    }

    /// An instance of some broker.
    fn launch(&self, region: &str, groups: &[String], tags: &[(&str, &str)]) -> String {
        let (_, subnets) = self.fake.default_network(region);
        let (zone, subnet) = subnets[0].clone();
        let group = self.fake.default_group(region);
        let managed = ("ManagedBy".to_owned(), "nix-broker".to_owned());
        let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let image = self.fake.add_image("427812963091", "nixos/26.05.9-x86_64-linux", "x86_64", "2026-01-01");
        let order = RunOrder {
            region: region.to_owned(),
            client_token: format!("token-{}", self.fake.instances().len()),
            image,
            root_device: "/dev/xvda".into(),
            instance_type: "c6a.4xlarge".into(),
            subnet,
            zone,
            security_groups: if groups.is_empty() { vec![group] } else { groups.to_vec() },
            user_data: "#!/bin/sh\n".into(),
            market: Market::OnDemand,
            max_price: None,
            public_ip: true,
            private_ip: None,
            disk: RunDisk { size: 100, throughput: 500, iops: 3000 },
            instance_store: 0,
            nested_virt: false,
            hibernation: false,
            tags: tags.chain([managed]).collect::<BTreeMap<_, _>>(),
        };
        let api = Api::over(self.fake.wire(), region, 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(api.run_instance(&order)).unwrap().id
    }
}

/// A service that answers this to whoever asks for an address. It ends with the test.
fn address_service(answer: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
    drop(thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            drop(stream.read(&mut request));
            drop(stream.write_all(answer.as_bytes()));
        }
    }));
    url
}

/// This long from now, as brokers write it; negative is ago.
fn in_minutes(minutes: i64) -> String {
    let span = Duration::from_secs(minutes.unsigned_abs() * 60);
    let now = SystemTime::now();
    let time = if minutes < 0 { now - span } else { now + span };
    humantime::format_rfc3339_seconds(time).to_string()
}
