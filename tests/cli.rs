//! The command line as people meet it: the real `broker` against a scripted broker on a socket of the test's own.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

#[path = "cli/lists.rs"]
mod lists;
#[path = "cli/logs.rs"]
mod logs;
#[path = "cli/orders.rs"]
mod orders;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/schema.rs"]
mod schema;
#[path = "cli/setup.rs"]
mod setup;
#[path = "cli/status.rs"]
mod status;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use assert_cmd::Command;
use nix_broker::ipc::view::{
    BuildView, BuilderView, CostRowView, CostView, EndedView, FaultView, HistoryView, LoadView, MoneyView,
    PastBuildView, PoolView, StatusView,
};
use nix_broker::ipc::{
    CostBy, Frame, Hello, LogReply, LogRequest, OperatorReply, OperatorRequest, Reply, Target, VERSION,
};
use tempfile::TempDir;

/// What a run of `broker` left behind.
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
}

/// A folder with a socket in it, and a command line that knows of nothing else.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("broker"));
        command
            .env_clear()
            .env("PATH", "/nonexistent")
            .env("NIX_BROKER_SOCKET", self.path("s"))
            .env("NIX_BROKER_CONFIG", self.path("config.toml"));
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        self.finish(self.command().args(args))
    }

    fn finish(&self, command: &mut Command) -> Run {
        let output = command.timeout(std::time::Duration::from_secs(60)).output().unwrap();
        let here = self.dir.path().to_str().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(here, "DIR");
        Run {
            code: output.status.code().expect("an exit status"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// A broker that serves one connection like this.
    fn serve<T: Send + 'static>(
        &self,
        script: impl FnOnce(UnixStream) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let listener = UnixListener::bind(self.path("s")).unwrap();
        thread::spawn(move || script(listener.accept().unwrap().0))
    }

    /// A broker that takes one request, gives these replies and closes.
    fn answer(&self, replies: Vec<OperatorReply>) -> JoinHandle<OperatorRequest> {
        self.serve(move |mut stream| {
            let hello: Hello = Frame::read(&mut stream).unwrap().parse().unwrap();
            assert_eq!(hello, Hello::Operator { version: VERSION });
            send(&mut stream, &Reply::Go);
            let request = Frame::read(&mut stream).unwrap().parse().unwrap();
            for reply in &replies {
                send(&mut stream, reply);
            }
            request
        })
    }

    /// The run of a command that is answered so, and what it asked.
    fn ask(&self, args: &[&str], replies: Vec<OperatorReply>) -> (Run, OperatorRequest) {
        let broker = self.answer(replies);
        let run = self.run(args);
        fs::remove_file(self.path("s")).unwrap();
        (run, broker.join().unwrap())
    }
}

fn send(stream: &mut UnixStream, message: &impl serde::Serialize) {
    Frame::message(message).unwrap().write(stream).unwrap();
}

fn drv(name: &str) -> String {
    format!("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-{name}.drv")
}

fn pool(name: &str) -> PoolView {
    PoolView {
        name: name.to_owned(),
        ready: 0,
        starting: 0,
        ending: 0,
        max_builders: 2,
        slots_used: 0,
        slots: 0,
        queued: 0,
        idle_timeout: 600.0,
        surplus_idle_timeout: 600.0,
        last_fault: None,
        cooling: None,
        capped: None,
        rate: None,
        today: None,
    }
}

fn builder(id: &str, pool: &str, state: &str) -> BuilderView {
    BuilderView {
        id: id.to_owned(),
        pool: pool.to_owned(),
        instance: Some(format!("local-{id}")),
        state: state.to_owned(),
        progress: None,
        in_state: 38.5,
        age: 700.0,
        slots_used: 0,
        slots: 8,
        ends_in: None,
        instance_type: None,
        market: None,
        zone: None,
        rate: None,
        cost: None,
        shortage: None,
        load: None,
    }
}

fn build(id: u64, name: &str, phase: &str, pool: &str) -> BuildView {
    BuildView {
        id,
        drv: drv(name),
        name: name.to_owned(),
        phase: phase.to_owned(),
        ahead: None,
        reason: None,
        in_phase: 130.0,
        age: 150.0,
        pool: Some(pool.to_owned()),
        builder: None,
        attempts: 1,
        remaining: None,
        cost: None,
    }
}

/// A busy afternoon.
fn busy() -> StatusView {
    let x86 = PoolView { ready: 2, ending: 1, slots_used: 3, slots: 16, queued: 1, ..pool("x86") };
    let arm = PoolView { starting: 1, queued: 1, max_builders: 1, ..pool("arm64") };
    let fault = FaultView { reason: "launch refused: no capacity\x1b[2J".to_owned(), ago: 184.0 };
    let big = PoolView { queued: 1, last_fault: Some(fault), cooling: Some(56.0), ..pool("big") };
    let on = |build: BuildView, builder: &str| BuildView { builder: Some(builder.to_owned()), ..build };
    StatusView {
        schema: 1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: 15_120.0,
        accepting: true,
        ended: EndedView { succeeded: 12, failed: 1, cancelled: 0 },
        money: None,
        pools: vec![x86, arm, big],
        builders: vec![
            BuilderView { slots_used: 2, ..builder("b-1", "x86", "ready") },
            BuilderView { ends_in: Some(250.0), ..builder("b-2", "x86", "ready") },
            BuilderView { slots: 0, instance: None, ..builder("b-3", "arm64", "booting") },
            BuilderView { slots_used: 1, ..builder("b-4", "x86", "draining") },
        ],
        builds: vec![
            BuildView { ahead: Some(1), ..build(7, "openssl-3.5.1", "queued", "x86") },
            on(build(8, "linux-6.12.38", "building", "x86"), "b-1"),
            on(BuildView { attempts: 2, ..build(9, "hello-2.12.2", "uploading", "x86") }, "b-4"),
            BuildView { ahead: Some(0), ..build(10, "gcc-15.1.0", "queued", "arm64") },
            BuildView { ahead: Some(0), ..build(11, "chromium-140.0", "queued", "big") },
            BuildView { pool: None, ..build(12, "fresh", "accepted", "") },
            on(build(5, "bash-5.3", "succeeded", "x86"), "b-2"),
            on(
                BuildView {
                    reason: Some("builder exited with 1".to_owned()),
                    ..build(6, "broken", "failed", "x86")
                },
                "b-2",
            ),
        ],
    }
}

/// The same afternoon on machines that cost something.
fn costly() -> StatusView {
    let mut view = busy();
    view.money = Some(MoneyView {
        rate: 1.224,
        today: 3.1,
        month: 41.0,
        cap_hour: None,
        cap_day: Some(20.0),
        cap_month: None,
    });
    view.pools[0] = PoolView { rate: Some(1.224), today: Some(3.1), ..view.pools[0].clone() };
    view.pools[2].capped = Some("the cap of $20.00 a day is reached".to_owned());
    for (builder, cost) in view.builders.iter_mut().zip([0.5, 0.002]) {
        builder.instance_type = Some("c7a.4xlarge".to_owned());
        builder.market = Some("spot".to_owned());
        builder.zone = Some("eu-central-1a".to_owned());
        (builder.rate, builder.cost) = (Some(0.612), Some(cost));
    }
    view.builds[1].cost = Some(0.0213);
    view
}

fn idle() -> StatusView {
    StatusView {
        pools: vec![pool("x86")],
        builders: vec![],
        builds: vec![],
        uptime: 3.0,
        ended: EndedView { succeeded: 0, failed: 0, cancelled: 0 },
        ..busy()
    }
}
