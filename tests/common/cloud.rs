//! EC2 beside a lab's machine: moto's API in that machine's network, and a real machine for every instance that runs.
//!
//! tests/lab/cloud.py does the work; here are its life and what tests ask of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix_broker::catalog::missing_flags;
use nix_broker::model::Feature;
use serde_json::{Value, json};

use crate::lab::{Lab, text};

const ADDRESS: &str = "127.0.0.1:5000";

/// A cloud that is over, with all its machines, when it is dropped.
pub(crate) struct Cloud {
    agent: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    host: String,
    about: Value,
}

impl Cloud {
    /// A cloud whose API and machines this host can reach.
    pub(crate) fn beside(lab: &Lab) -> Self {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
        let moto = Command::new(scripts.join("moto.sh")).output().unwrap();
        assert!(moto.status.success(), "no moto:\n{}", text(&moto));
        let python = String::from_utf8(moto.stdout).unwrap();
        let root = Command::new(scripts.join("host.sh")).args(["root", lab.name()]).output().unwrap();
        let network = String::from_utf8(root.stdout).unwrap().trim().replace("/root", "/ns/net");
        let mut agent = Command::new("nsenter")
            .args([&format!("--net={network}"), python.trim()])
            .arg(scripts.join("cloud.py"))
            .args([lab.name(), lab.release(), ADDRESS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (commands, answers) = (agent.stdin.take(), BufReader::new(agent.stdout.take().unwrap()));
        let host = lab.name().to_owned();
        let mut cloud = Self { agent, commands, answers, host, about: Value::Null };
        cloud.about = cloud.read();
        cloud
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("the cloud is gone: {error}: {line}"))
    }

    fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
        self.read()
    }

    /// What makes every AWS tool use this cloud.
    pub(crate) fn environment(&self) -> Vec<String> {
        vec![
            "AWS_ACCESS_KEY_ID=AKIALAB".to_owned(),
            "AWS_SECRET_ACCESS_KEY=unchecked".to_owned(),
            "AWS_EC2_METADATA_DISABLED=true".to_owned(),
            format!("AWS_REGION={}", self.about["region"].as_str().unwrap()),
            format!("AWS_ENDPOINT_URL_EC2={}", self.about["endpoint"].as_str().unwrap()),
            format!("AWS_ENDPOINT_URL_SCHEDULER={}", self.about["endpoint"].as_str().unwrap()),
        ]
    }

    /// What says to the broker that it is on the internet.
    pub(crate) fn address_service(&self) -> String {
        "NIX_BROKER_ADDRESS_URL=http://169.254.169.254/own-address".to_owned()
    }

    /// The lines of a `[pool.ec2]` that lead here.
    pub(crate) fn settings(&self) -> String {
        format!(
            "subnets = {}\nsecurity-groups = {}\nreach = \"private\"\n",
            self.about["subnets"], self.about["groups"]
        )
    }

    /// A call to EC2, named as boto3 does.
    pub(crate) fn ec2(&mut self, method: &str, arguments: &Value) -> Value {
        self.ask(&json!(["ec2", method, arguments]))
    }

    /// What AWS is to do by itself: every schedule, whole.
    pub(crate) fn schedules(&mut self) -> Vec<Value> {
        let all = self.ask(&json!(["scheduler", "list_schedules", {}]));
        let names: Vec<_> =
            all["Schedules"].as_array().unwrap().iter().map(|it| it["Name"].clone()).collect();
        names
            .into_iter()
            .map(|name| self.ask(&json!(["scheduler", "get_schedule", { "Name": name }])))
            .collect()
    }

    /// Every instance there ever was, in the order of their launch.
    pub(crate) fn instances(&mut self) -> Vec<Value> {
        let reply = self.ec2("describe_instances", &json!({}));
        let groups = reply["Reservations"].as_array().unwrap();
        groups.iter().flat_map(|group| group["Instances"].as_array().unwrap().clone()).collect()
    }

    /// The states of all instances.
    pub(crate) fn states(&mut self) -> Vec<String> {
        self.instances().iter().map(|it| it["State"]["Name"].as_str().unwrap().to_owned()).collect()
    }

    /// The only instance there ever was.
    pub(crate) fn only(&mut self) -> Value {
        let instances = self.instances();
        assert_eq!(instances.len(), 1, "{instances:#?}");
        instances.into_iter().next().unwrap()
    }

    /// What an instance is doing.
    pub(crate) fn state_of(&mut self, instance: &str) -> String {
        let instances = self.instances();
        let found = instances.iter().find(|it| it["InstanceId"] == instance).unwrap();
        found["State"]["Name"].as_str().unwrap().to_owned()
    }

    /// A subnet to launch in.
    pub(crate) fn subnet(&self) -> &str {
        self.about["subnets"][0].as_str().unwrap()
    }

    /// How often the broker asked for this.
    pub(crate) fn calls(&mut self, action: &str) -> u64 {
        self.ask(&json!(["calls"]))[action].as_u64().unwrap_or(0)
    }

    /// Machines that start from now on wait with their boot.
    pub(crate) fn hold(&mut self) {
        self.ask(&json!(["hold"]));
    }

    /// They go on.
    pub(crate) fn release(&mut self) {
        self.ask(&json!(["release"]));
    }

    /// In machines that boot from now on this program fails.
    pub(crate) fn break_program(&mut self, program: &str) {
        self.ask(&json!(["break", program]));
    }

    /// This action is done, and its answer withheld.
    pub(crate) fn stall(&mut self, action: &str) {
        self.ask(&json!(["stall", action]));
    }

    /// This action is not done, and not answered.
    pub(crate) fn lose(&mut self, action: &str) {
        self.ask(&json!(["lose", action]));
    }

    /// Answers are given again, those that were withheld too.
    pub(crate) fn flow(&mut self) {
        self.ask(&json!(["flow"]));
    }

    /// Whoever asks for this action of EventBridge Scheduler is told that he may not.
    pub(crate) fn deny(&mut self, action: &str) {
        self.ask(&json!(["deny", action]));
    }

    /// He may again.
    pub(crate) fn allow(&mut self) {
        self.ask(&json!(["allow"]));
    }

    /// Bytes that have come to an instance by its public address.
    pub(crate) fn sent_to(&mut self, instance: &str) -> u64 {
        self.ask(&json!(["sent", instance])).as_u64().unwrap()
    }

    /// Spot instances hear that EC2 takes them back.
    pub(crate) fn interrupt(&mut self) {
        self.ask(&json!(["interrupt"]));
    }

    /// What a script prints in the machine of an instance.
    pub(crate) fn on_machine(&self, instance: &str, script: &str) -> String {
        let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/host.sh");
        let name = format!("{}-{instance}", self.host);
        let output = Command::new(host).args(["in", &name, "sh", "-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ended = self.agent.wait();
    }
}

/// The feature of the most demanding level that this machine's processor has: what the machines of the cloud run on.
pub(crate) fn feature_of_this_machine() -> String {
    let levels = ["x86-64-v4", "x86-64-v3", "x86-64-v2", "armv8.2-a", "armv8-a"];
    format!("gccarch-{}", levels.iter().find(|level| !lacks(level)).unwrap())
}

/// Whether this machine's processor cannot run code for this level or processor.
pub(crate) fn lacks(gccarch: &str) -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = cpuinfo.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags: BTreeSet<&str> = line.unwrap().split_whitespace().collect();
    !missing_flags(&Feature::new(format!("gccarch-{gccarch}")), &flags).is_empty()
}
