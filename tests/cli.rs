//! The command line as people meet it: the real `broker` against a scripted broker on a socket of the test's own.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

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

#[test]
fn status_shows_what_runs_what_waits_and_what_ends() {
    let (run, request) = Desk::new().ask(&["status"], vec![OperatorReply::Status(busy())]);
    assert_eq!(request, OperatorRequest::Status);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    broker 0.1.0, up 4h 12m, accepting builds

    POOL   BUILDERS                   MAX  SLOTS  QUEUED  IDLE TIMEOUT
    x86    2 ready, 1 draining (38s)  2    3/16   1       10m
    arm64  1 booting (38s)            1    0/0    1       10m
    big    none                       2    0/0    1       10m
    warn  pool `big`: launch refused: no capacity[2J (3m 4s ago); next launch in 56s

    BUILDER  POOL   STATE     FOR  SLOTS  ENDS           INSTANCE
    b-1      x86    ready     38s  2/8    -              local-b-1
    b-2      x86    ready     38s  0/8    in 4m 10s      local-b-2
    b-3      arm64  booting   38s  0/0    -              -
    b-4      x86    draining  38s  1/8    after 1 build  local-b-4

    BUILD  DERIVATION      STATE              FOR     WHERE
    #8     linux-6.12.38   building           2m 10s  b-1 (x86)
    #9     hello-2.12.2    uploading (try 2)  2m 10s  b-4 (x86)
    #7     openssl-3.5.1   queued             2m 10s  waits for a slot of x86, 1 ahead
    #10    gcc-15.1.0      queued             2m 10s  waits for b-3 (arm64, booting)
    #11    chromium-140.0  queued             2m 10s  waits for big, which launches again in 56s
    #12    fresh           accepted           2m 10s  waits for its inputs from Nix

    Ended so far: 12 succeeded, 1 failed (`broker builds --all`)
    ");
}

#[test]
fn a_builder_that_boots_says_what_it_is_doing() {
    let booting = BuilderView {
        progress: Some("imds closed".to_owned()),
        slots: 0,
        ..builder("b-1", "x86", "booting")
    };
    let view = StatusView { builders: vec![booting], ..idle() };
    let (run, _) = Desk::new().ask(&["builders"], vec![OperatorReply::Status(view)]);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    BUILDER  POOL  STATE                 FOR  SLOTS  ENDS  INSTANCE
    b-1      x86   booting: imds closed  38s  0/0    -     local-b-1
    ");
}

#[test]
fn a_machine_that_is_short_of_something_says_so_and_so_does_what_waits_for_it() {
    let first = BuilderView {
        slots_used: 2,
        shortage: Some("short of memory".to_owned()),
        ..builder("b-1", "x86", "ready")
    };
    let x86 = PoolView { ready: 1, slots_used: 2, slots: 8, queued: 1, ..pool("x86") };
    let waits = BuildView { ahead: Some(0), ..build(7, "openssl-3.5.1", "queued", "x86") };
    let view = StatusView { pools: vec![x86], builders: vec![first], builds: vec![waits], ..idle() };
    let (run, _) = Desk::new().ask(&["status"], vec![OperatorReply::Status(view)]);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    broker 0.1.0, up 3s, accepting builds

    POOL  BUILDERS  MAX  SLOTS  QUEUED  IDLE TIMEOUT
    x86   1 ready   2    2/8    1       10m

    BUILDER  POOL  STATE                   FOR  SLOTS  ENDS  INSTANCE
    b-1      x86   ready: short of memory  38s  2/8    -     local-b-1

    BUILD  DERIVATION     STATE   FOR     WHERE
    #7     openssl-3.5.1  queued  2m 10s  waits for a slot of x86 (b-1: short of memory)
    ");
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

#[test]
fn status_shows_what_everything_costs_when_anything_does() {
    let (run, _) = Desk::new().ask(&["status"], vec![OperatorReply::Status(costly())]);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    broker 0.1.0, up 4h 12m, accepting builds

    POOL   BUILDERS                   MAX  SLOTS  QUEUED  IDLE TIMEOUT  RATE     TODAY
    x86    2 ready, 1 draining (38s)  2    3/16   1       10m           $1.22/h  $3.10
    arm64  1 booting (38s)            1    0/0    1       10m           -        -
    big    none                       2    0/0    1       10m           -        -
    warn  pool `big`: launch refused: no capacity[2J (3m 4s ago); next launch in 56s
    warn  pool `big` launches nothing: the cap of $20.00 a day is reached

    Costs $1.22/h now, $3.10 today (cap $20.00), $41.00 this month (UTC; `broker cost`)

    BUILDER  POOL   STATE     FOR  SLOTS  ENDS           INSTANCE   TYPE         MARKET  ZONE           RATE     SO FAR
    b-1      x86    ready     38s  2/8    -              local-b-1  c7a.4xlarge  spot    eu-central-1a  $0.61/h  $0.50
    b-2      x86    ready     38s  0/8    in 4m 10s      local-b-2  c7a.4xlarge  spot    eu-central-1a  $0.61/h  $0.002
    b-3      arm64  booting   38s  0/0    -              -          -            -       -              -        -
    b-4      x86    draining  38s  1/8    after 1 build  local-b-4  -            -       -              -        -

    BUILD  DERIVATION      STATE              FOR     WHERE                                  COST
    #8     linux-6.12.38   building           2m 10s  b-1 (x86)                              $0.02
    #9     hello-2.12.2    uploading (try 2)  2m 10s  b-4 (x86)                              -
    #7     openssl-3.5.1   queued             2m 10s  waits for a slot of x86, 1 ahead       -
    #10    gcc-15.1.0      queued             2m 10s  waits for b-3 (arm64, booting)         -
    #11    chromium-140.0  queued             2m 10s  waits for big, which launches nothing  -
    #12    fresh           accepted           2m 10s  waits for its inputs from Nix          -

    Ended so far: 12 succeeded, 1 failed (`broker builds --all`)
    ");
}

/// What the README shows and explains.
fn of_the_readme() -> StatusView {
    let on = |build: BuildView, cost: f64| BuildView {
        builder: Some("b-1".to_owned()),
        cost: Some(cost),
        ..build
    };
    let zen3 = PoolView {
        ready: 1,
        starting: 1,
        slots_used: 2,
        slots: 16,
        queued: 1,
        idle_timeout: 1_200.0,
        surplus_idle_timeout: 180.0,
        rate: Some(0.612),
        today: Some(0.31),
        ..pool("zen3")
    };
    let priced = |builder: BuilderView, cost: f64| BuilderView {
        instance_type: Some("c6a.4xlarge".to_owned()),
        market: Some("spot".to_owned()),
        zone: Some("eu-central-1a".to_owned()),
        rate: Some(0.306),
        cost: Some(cost),
        ..builder
    };
    let instance = |id: &str| Some(format!("i-0{id}b7e1f64ab55a1f9"));
    let first =
        BuilderView { slots_used: 2, slots: 16, instance: instance("c"), ..builder("b-1", "zen3", "ready") };
    let second = BuilderView {
        slots: 0,
        instance: instance("d"),
        progress: Some("nix configured".to_owned()),
        ..builder("b-2", "zen3", "booting")
    };
    let money = MoneyView {
        rate: 0.612,
        today: 0.31,
        month: 4.6,
        cap_hour: Some(5.0),
        cap_day: None,
        cap_month: None,
    };
    StatusView {
        money: Some(money),
        pools: vec![zen3],
        builders: vec![priced(first, 0.21), priced(second, 0.01)],
        builds: vec![
            on(build(8, "linux-6.12.38", "building", "zen3"), 0.04),
            on(build(9, "hello-2.12.2", "uploading", "zen3"), 0.002),
            BuildView { ahead: Some(0), ..build(10, "gcc-15.1.0", "queued", "zen3") },
        ],
        ended: EndedView { succeeded: 12, failed: 0, cancelled: 0 },
        ..busy()
    }
}

#[test]
fn the_readmes_example_is_what_status_prints() {
    let (run, _) = Desk::new().ask(&["status"], vec![OperatorReply::Status(of_the_readme())]);
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let shown = readme.split("```console\n$ broker status\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(run.stdout, shown, "the README shows something else");
}

#[test]
fn status_of_an_idle_broker_is_short() {
    let (run, _) = Desk::new().ask(&["status"], vec![OperatorReply::Status(idle())]);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    broker 0.1.0, up 3s, accepting builds

    POOL  BUILDERS  MAX  SLOTS  QUEUED  IDLE TIMEOUT
    x86   none      2    0/0    0       10m

    No builds.
    ");
}

#[test]
fn a_long_queue_is_counted_and_not_listed() {
    let builds = (0..500).map(|id| build(id, "many", "queued", "x86")).collect();
    let (run, _) = Desk::new().ask(&["status"], vec![OperatorReply::Status(StatusView { builds, ..idle() })]);
    assert!(run.stdout.contains("\n... and 480 more: `broker builds`\n"), "{}", run.stdout);
    assert!(run.stdout.lines().count() < 30, "{}", run.stdout);
}

#[test]
fn status_in_json_is_the_document_as_the_broker_sent_it() {
    let (run, _) = Desk::new().ask(&["status", "--json"], vec![OperatorReply::Status(busy())]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<StatusView>(&run.stdout).unwrap(), busy());
    let view: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(view["schema"], 1);
    insta::assert_snapshot!(serde_json::to_string_pretty(&view["builders"][2]).unwrap(), @r#"
    {
      "age": 700.0,
      "cost": null,
      "ends-in": null,
      "id": "b-3",
      "in-state": 38.5,
      "instance": null,
      "instance-type": null,
      "load": null,
      "market": null,
      "pool": "arm64",
      "progress": null,
      "rate": null,
      "shortage": null,
      "slots": 0,
      "slots-used": 0,
      "state": "booting",
      "zone": null
    }
    "#);
    insta::assert_snapshot!(serde_json::to_string_pretty(&view["builds"][0]).unwrap(), @r#"
    {
      "age": 150.0,
      "ahead": 1,
      "attempts": 1,
      "builder": null,
      "cost": null,
      "drv": "/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-openssl-3.5.1.drv",
      "id": 7,
      "in-phase": 130.0,
      "name": "openssl-3.5.1",
      "phase": "queued",
      "pool": "x86",
      "reason": null,
      "remaining": null
    }
    "#);
    insta::assert_snapshot!(serde_json::to_string_pretty(&view["pools"][2]).unwrap(), @r#"
    {
      "capped": null,
      "cooling": 56.0,
      "ending": 0,
      "idle-timeout": 600.0,
      "last-fault": {
        "ago": 184.0,
        "reason": "launch refused: no capacity\u001b[2J"
      },
      "max-builders": 2,
      "name": "big",
      "queued": 1,
      "rate": null,
      "ready": 0,
      "slots": 0,
      "slots-used": 0,
      "starting": 0,
      "surplus-idle-timeout": 600.0,
      "today": null
    }
    "#);
}

#[test]
fn watching_prints_every_change_until_the_broker_ends_it() {
    let two =
        || vec![OperatorReply::Status(idle()), OperatorReply::Status(StatusView { uptime: 4.0, ..idle() })];
    let (run, request) = Desk::new().ask(&["status", "--watch"], two());
    assert_eq!(request, OperatorRequest::Watch);
    insta::assert_snapshot!(run.text(), @r"
    exit 1
    --- stdout
    broker 0.1.0, up 3s, accepting builds

    POOL  BUILDERS  MAX  SLOTS  QUEUED  IDLE TIMEOUT
    x86   none      2    0/0    0       10m

    No builds.

    broker 0.1.0, up 4s, accepting builds

    POOL  BUILDERS  MAX  SLOTS  QUEUED  IDLE TIMEOUT
    x86   none      2    0/0    0       10m

    No builds.

    --- stderr
    error: the broker closed the connection
    hint: see its log with `journalctl -u nix-broker`
    ");
    let (run, _) = Desk::new().ask(&["status", "--watch", "--json"], two());
    let uptimes: Vec<f64> =
        run.stdout.lines().map(|line| serde_json::from_str::<StatusView>(line).unwrap().uptime).collect();
    assert_eq!(uptimes, [3.0, 4.0]);
}

#[test]
fn a_broker_of_another_version_is_told_of() {
    let other = StatusView { version: "0.0.9".to_owned(), ..idle() };
    let (run, _) = Desk::new().ask(&["status"], vec![OperatorReply::Status(other)]);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    broker 0.0.9, up 3s, accepting builds

    POOL  BUILDERS  MAX  SLOTS  QUEUED  IDLE TIMEOUT
    x86   none      2    0/0    0       10m

    No builds.
    --- stderr
    warning: the running broker is 0.0.9, this command 0.1.0; `systemctl restart nix-broker` after an upgrade
    ");
}

/// What a machine in full swing says of itself.
fn full_swing() -> LoadView {
    LoadView {
        ago: 3.2,
        processors: Some(16),
        average: Some(12.34),
        cpu: Some(75.04),
        memory_total: Some(64 << 30),
        memory_available: Some(24 << 30),
        memory_pressure: Some(0.31),
        disk_total: Some(200 << 30),
        disk_free: Some(80 << 30),
        received: Some(1 << 20),
        sent: Some(2_500_000),
    }
}

#[test]
fn top_shows_how_busy_each_machine_is_and_does_not_wait_for_one_that_never_says() {
    let mut view = busy();
    view.builders[0].load = Some(full_swing());
    view.builders[1].shortage = Some("short of memory".to_owned());
    view.builders[3].load = Some(LoadView { average: Some(0.5), ..LoadView::default() });
    let replies = || vec![OperatorReply::Status(busy()), OperatorReply::Status(view.clone())];
    let (run, request) = Desk::new().ask(&["top"], replies());
    assert_eq!(request, OperatorRequest::Watch);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    4 builders, 3/24 slots in use, 3 builds queued

    BUILDER  POOL   STATE                   SLOTS  CPU  LOAD      MEMORY         PRESSURE  DISK FREE     IN         OUT
    b-1      x86    ready                   2/8    75%  12.34/16  40 GiB/64 GiB  0.3%      80 GiB (40%)  1.0 MiB/s  2.4 MiB/s
    b-2      x86    ready: short of memory  0/8    -    -         -              -         -             -          -
    b-3      arm64  booting                 0/0    -    -         -              -         -             -          -
    b-4      x86    draining                1/8    -    0.50      -              -         -             -          -
    ");
    let (run, _) = Desk::new().ask(&["top", "--json"], replies());
    let document: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&document["schema"], &document["builders"][0]["load"]["cpu"]), (&1.into(), &75.04.into()));
    let (run, _) = Desk::new().ask(&["top"], vec![OperatorReply::Status(idle())]);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    0 builders, 0/0 slots in use, 0 builds queued
    ");
}

#[test]
fn builders_and_builds_are_listed() {
    let status = || vec![OperatorReply::Status(busy())];
    let desk = Desk::new();
    insta::assert_snapshot!(desk.ask(&["builders"], status()).0.text(), @r"
    exit 0
    --- stdout
    BUILDER  POOL   STATE     FOR  SLOTS  ENDS           INSTANCE
    b-1      x86    ready     38s  2/8    -              local-b-1
    b-2      x86    ready     38s  0/8    in 4m 10s      local-b-2
    b-3      arm64  booting   38s  0/0    -              -
    b-4      x86    draining  38s  1/8    after 1 build  local-b-4
    ");
    insta::assert_snapshot!(desk.ask(&["builds"], status()).0.text(), @r"
    exit 0
    --- stdout
    BUILD  DERIVATION      STATE              FOR     WHERE
    #7     openssl-3.5.1   queued             2m 10s  waits for a slot of x86, 1 ahead
    #8     linux-6.12.38   building           2m 10s  b-1 (x86)
    #9     hello-2.12.2    uploading (try 2)  2m 10s  b-4 (x86)
    #10    gcc-15.1.0      queued             2m 10s  waits for b-3 (arm64, booting)
    #11    chromium-140.0  queued             2m 10s  waits for big, which launches again in 56s
    #12    fresh           accepted           2m 10s  waits for its inputs from Nix
    ");
    insta::assert_snapshot!(desk.ask(&["builds", "--all"], status()).0.text(), @r"
    exit 0
    --- stdout
    BUILD  DERIVATION      STATE              FOR         WHERE
    #7     openssl-3.5.1   queued             2m 10s      waits for a slot of x86, 1 ahead
    #8     linux-6.12.38   building           2m 10s      b-1 (x86)
    #9     hello-2.12.2    uploading (try 2)  2m 10s      b-4 (x86)
    #10    gcc-15.1.0      queued             2m 10s      waits for b-3 (arm64, booting)
    #11    chromium-140.0  queued             2m 10s      waits for big, which launches again in 56s
    #12    fresh           accepted           2m 10s      waits for its inputs from Nix
    #5     bash-5.3        succeeded          2m 10s ago  b-2 (x86)
    #6     broken          failed             2m 10s ago  b-2 (x86): builder exited with 1
    ");
    let none = || vec![OperatorReply::Status(idle())];
    insta::assert_snapshot!(desk.ask(&["builds"], none()).0.text(), @r"
    exit 0
    --- stdout
    No builds.
    ");
    insta::assert_snapshot!(desk.ask(&["builders"], none()).0.text(), @r"
    exit 0
    --- stdout
    No builders.
    ");
}

#[test]
fn builders_and_builds_in_json_have_a_schema() {
    let desk = Desk::new();
    let mut n_builds = Vec::new();
    for (args, list) in [
        (&["builders", "--json"][..], "builders"),
        (&["builds", "--json"], "builds"),
        (&["builds", "--json", "--all"], "builds"),
    ] {
        let (run, _) = desk.ask(args, vec![OperatorReply::Status(busy())]);
        let view: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(view["schema"], 1);
        n_builds.push(view[list].as_array().unwrap().len());
    }
    assert_eq!(n_builds, [4, 6, 8]);
}

#[test]
fn why_prints_the_lines_of_the_broker() {
    let lines = vec!["hello-2.12.2 was accepted 2m ago".to_owned(), "x86: runs it on b-1".to_owned()];
    let desk = Desk::new();
    let (run, request) = desk.ask(&["why", "#9"], vec![OperatorReply::Why { lines: lines.clone() }]);
    assert_eq!(request, OperatorRequest::Why { subject: "#9".to_owned() });
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    hello-2.12.2 was accepted 2m ago
    x86: runs it on b-1
    ");
    let (run, _) = desk.ask(&["why", "#9", "--json"], vec![OperatorReply::Why { lines }]);
    insta::assert_snapshot!(run.text(), @r#"
    exit 0
    --- stdout
    {
      "schema": 1,
      "lines": [
        "hello-2.12.2 was accepted 2m ago",
        "x86: runs it on b-1"
      ]
    }
    "#);
}

#[test]
fn orders_say_what_is_done() {
    let desk = Desk::new();
    let done = |text: &str| vec![OperatorReply::Done { text: text.to_owned() }];
    for (args, expected) in [
        (&["start", "arm64"][..], OperatorRequest::Start { pool: "arm64".to_owned() }),
        (&["drain", "b-3"], OperatorRequest::Drain { target: Target::Builder("b-3".to_owned()) }),
        (&["drain", "3"], OperatorRequest::Drain { target: Target::Builder("b-3".to_owned()) }),
        (&["drain", "--all"], OperatorRequest::Drain { target: Target::All }),
        (&["stop", "b-3"], OperatorRequest::Stop { target: Target::Builder("b-3".to_owned()) }),
        (&["stop", "--all"], OperatorRequest::Stop { target: Target::All }),
    ] {
        let (run, request) = desk.ask(args, done("Draining builder `b-3`: 2 builds left."));
        assert_eq!(request, expected);
        assert_eq!(run.text(), "exit 0\n--- stdout\nDraining builder `b-3`: 2 builds left.\n");
    }
}

#[test]
fn an_order_that_cannot_be_carried_out_says_why() {
    let failed = OperatorReply::Failed {
        reason: "there is no pool `arm`".to_owned(),
        hint: Some("there are `x86` and `arm64`".to_owned()),
    };
    insta::assert_snapshot!(Desk::new().ask(&["start", "arm"], vec![failed]).0.text(), @r"
    exit 1
    --- stderr
    error: there is no pool `arm`
    hint: there are `x86` and `arm64`
    ");
}

#[test]
fn an_order_without_a_target_or_with_two_is_wrong_usage() {
    let desk = Desk::new();
    for args in [&["drain"][..], &["stop", "b-1", "--all"], &["drain", "x86"], &["frobnicate"], &[]] {
        assert_eq!(desk.run(args).code, 2, "{args:?}");
    }
    insta::assert_snapshot!(desk.run(&["drain", "x86"]).text(), @r"
    exit 2
    --- stderr
    error: invalid value 'x86' for '[BUILDER]': a builder is named like `b-3`; `broker builders` lists them

    For more information, try '--help'.
    ");
}

#[test]
fn a_broker_that_is_not_running_has_its_own_exit_status() {
    let desk = Desk::new();
    insta::assert_snapshot!(desk.run(&["status"]).text(), @r"
    exit 3
    --- stderr
    error: the broker is not running: nobody listens at `DIR/s`
      caused by: No such file or directory (os error 2)
    hint: start it with `systemctl start nix-broker`, or name its socket with `--socket`
    ");
    // A socket that a broker left behind when it was killed.
    drop(UnixListener::bind(desk.path("s")).unwrap());
    insta::assert_snapshot!(desk.run(&["drain", "--all"]).text(), @r"
    exit 3
    --- stderr
    error: the broker is not running: nobody listens at `DIR/s`
      caused by: Connection refused (os error 111)
    hint: start it with `systemctl start nix-broker`, or name its socket with `--socket`
    ");
}

#[test]
fn a_refusal_is_passed_on_with_what_to_do() {
    let desk = Desk::new();
    let broker = desk.serve(|mut stream| {
        send(
            &mut stream,
            &Reply::Refused { why: "this broker speaks version 2, the client version 1".to_owned() },
        );
    });
    insta::assert_snapshot!(desk.run(&["status"]).text(), @r"
    exit 1
    --- stderr
    error: the broker refuses: this broker speaks version 2, the client version 1
    hint: this command and the running broker may be of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
    broker.join().unwrap();
}

#[test]
fn whatever_else_is_at_the_socket_is_not_taken_for_a_broker() {
    let says = |bytes: &'static [u8]| {
        let desk = Desk::new();
        let other = desk.serve(move |mut stream| {
            stream.write_all(bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // Reads to the end, so that the client sees a close and no reset.
            drop(stream.read_to_end(&mut Vec::new()));
        });
        let run = desk.run(&["status"]);
        other.join().unwrap();
        run.text()
    };
    insta::assert_snapshot!(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), @r"
    exit 1
    --- stderr
    error: what answers at `DIR/s` cannot be understood
      caused by: frame of unknown kind 72
    hint: either this is not the broker's socket, or broker and command are of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
    insta::assert_snapshot!(says(b"m\xff\xff\xff\xff"), @r"
    exit 1
    --- stderr
    error: what answers at `DIR/s` cannot be understood
      caused by: frame of 4294967295 bytes is longer than 16777216
    hint: either this is not the broker's socket, or broker and command are of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
    insta::assert_snapshot!(says(b"m\x02\x00\x00\x00{}"), @r"
    exit 1
    --- stderr
    error: what answers at `DIR/s` cannot be understood
      caused by: unexpected message
      caused by: missing field `reply` at line 1 column 2
    hint: either this is not the broker's socket, or broker and command are of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
    insta::assert_snapshot!(says(b"m\x09\x00\x00\x00half"), @r"
    exit 1
    --- stderr
    error: the broker closed the connection
    hint: see its log with `journalctl -u nix-broker`
    ");
    insta::assert_snapshot!(says(b""), @r"
    exit 1
    --- stderr
    error: the broker closed the connection
    hint: see its log with `journalctl -u nix-broker`
    ");
}

#[test]
fn a_wrong_answer_is_no_answer() {
    let (run, _) = Desk::new().ask(&["status"], vec![OperatorReply::Why { lines: vec![] }]);
    insta::assert_snapshot!(run.text(), @r"
    exit 1
    --- stderr
    error: the broker gave the answer to another question: an explanation
    hint: either this is not the broker's socket, or broker and command are of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
}

#[test]
fn the_socket_of_the_configuration_is_used_when_nothing_else_names_one() {
    let desk = Desk::new();
    fs::write(
        desk.path("config.toml"),
        format!("socket = \"{}\"\n[[pool]]\nname = \"p\"\n[pool.local]\n", desk.path("t")),
    )
    .unwrap();
    let run = desk.finish(desk.command().env_remove("NIX_BROKER_SOCKET").arg("status"));
    assert!(run.stderr.contains("nobody listens at `DIR/t`"), "{}", run.stderr);
    let run = desk.finish(desk.command().args(["status", "--socket", "/nonexistent/u"]));
    assert!(run.stderr.contains("nobody listens at `/nonexistent/u`"), "{}", run.stderr);
}

#[test]
fn check_prints_every_problem_of_a_file() {
    let desk = Desk::new();
    fs::write(desk.path("config.toml"), "[[pool]]\nnmae = \"x\"\nidle-timeout = 5\n").unwrap();
    insta::assert_snapshot!(desk.run(&["check"]).text(), @r#"
    exit 1
    --- stderr
    error: `DIR/config.toml` has 4 problems
      DIR/config.toml:1: pool[1]: no provider; say where the machines come from: a `[pool.local]` table, a `[pool.ec2]` table, or `[[pool.hosts]]`
      DIR/config.toml:1: pool[1].name: missing: every pool has a name, such as "local"
      DIR/config.toml:2: pool[1].nmae: unknown key; did you mean `name`?
      DIR/config.toml:3: pool[1].idle-timeout: `5` has no unit; write "5s" or "5m"
    "#);
    insta::assert_snapshot!(desk.run(&["check", &desk.path("none.toml")]).text(), @r"
    exit 1
    --- stderr
    error: there is no configuration at `DIR/none.toml`
    hint: name another file on the command line, or with NIX_BROKER_CONFIG
    ");
}

#[test]
fn check_shows_the_pools_of_a_valid_file() {
    let desk = Desk::new();
    let text = r#"
[[pool]]
name = "x86"
systems = ["x86_64-linux"]
features = ["big-parallel", "kvm"]
max-builders = 3
[pool.local]
[[pool]]
name = "overflow"
systems = ["x86_64-linux"]
slots = 4
[[pool.hosts]]
address = "10.0.0.7"
user = "nix"
host-keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKzGxzKd0v4+U52GLBchvq5xvKQpQ3YEy3a2vPT8YyVL"]
"#;
    fs::write(desk.path("c.toml"), text).unwrap();
    let run = desk.run(&["check", &desk.path("c.toml")]);
    assert_eq!(run.code, 0, "{}", run.text());
    let pools: Vec<&str> = run.stdout.lines().take_while(|line| !line.starts_with("What")).collect();
    insta::assert_snapshot!(pools.join("\n"), @r"
    `DIR/c.toml` is valid: 2 pools.

    POOL      PROVIDER  SYSTEMS       FEATURES           SLOTS  BUILDERS  IDLE TIMEOUT
    x86       local     x86_64-linux  big-parallel, kvm  auto   0 to 3    10m
    overflow  1 host    x86_64-linux  -                  4      0 to 1    10m
    ");
    let overflow = "note  `overflow` gets a build only when `x86` is full: whatever fits it fits both";
    assert!(run.stdout.contains(overflow), "{}", run.stdout);
    assert!(run.stdout.contains("`nix@10.0.0.7` must let the broker's own key in"), "{}", run.stdout);
    let run = desk.run(&["check", "--json", &desk.path("c.toml")]);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["pools"], serde_json::json!(["x86", "overflow"]));
}

/// A machine in a folder: a Nix that ignores `build-hook` in nix.conf, as 2.31 does, and a daemon with this NIX_CONFIG.
fn machine(desk: &Desk, nix_config: &str) {
    let write = |path: &str, text: &str| {
        let path = desk.path(path);
        fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    };
    write(
        "bin/nix",
        "#!/bin/sh\n\
         case \"$*\" in\n\
         --version) echo 'nix (Nix) 2.31.2';;\n\
         *'config show') echo 'build-hook = /bin/nix __build-remote'; echo 'builders = @/etc/nix/machines'; echo \"$NIX_CONFIG\";;\n\
         *) exit 1;;\n\
         esac\n",
    );
    fs::set_permissions(desk.path("bin/nix"), fs::Permissions::from_mode(0o755)).unwrap();
    write("root/etc/nix/nix.conf", "!include more.conf\n");
    write("root/etc/nix/more.conf", "build-hook = /opt/broker-hook\n");
    write("root/nix/var/nix/daemon-socket/socket", "");
    write("root/opt/broker-hook", "");
    fs::set_permissions(desk.path("root/opt/broker-hook"), fs::Permissions::from_mode(0o755)).unwrap();
    let fields = "S 1 2 2 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 999";
    write("root/proc/77/stat", &format!("77 (nix-daemon) {fields}"));
    write("root/proc/78/stat", &format!("78 (nix-daemon) {}", fields.replacen('1', "77", 1)));
    write(
        "root/proc/77/environ",
        &format!("SECRET=hunter2\0NIX_BROKER_SOCKET={}\0NIX_CONFIG={nix_config}\0", desk.path("s")),
    );
    std::os::unix::fs::symlink(desk.path("bin/nix"), desk.path("root/proc/77/exe")).unwrap();
}

#[test]
fn doctor_finds_a_build_hook_that_nix_ignores() {
    let doctor = |nix_config: &str| {
        let desk = Desk::new();
        machine(&desk, nix_config);
        let root = desk.path("root");
        let path = format!("{}:/usr/bin:/bin", desk.path("bin"));
        let run = desk.finish(desk.command().env("PATH", path).args(["doctor", "--root", &root]));
        assert!(!run.text().contains("hunter2"), "{}", run.text());
        assert_eq!(run.code, 1, "{}", run.text());
        run.stdout
    };
    let ignored = "Nix 2.31.2 ignores `build-hook` in `/etc/nix/nix.conf`, as 2.25 to 2.33 do: builds through the nix-daemon";
    let without = doctor("");
    assert!(without.contains(ignored), "{without}");
    let with = doctor("build-hook = /opt/broker-hook");
    assert!(!with.contains(ignored), "{with}");
    assert!(with.contains("ok    builds through the nix-daemon start the hook `/opt/broker-hook`"), "{with}");
    assert!(with.contains("ok    the nix-daemon passes"), "{with}");
    assert!(with.contains("fail  the broker is not running: nobody listens at `DIR/s`"), "{with}");
}

#[test]
fn doctor_in_json_has_levels_and_hints() {
    let desk = Desk::new();
    let broker = desk.answer(vec![OperatorReply::Status(idle())]);
    let root = desk.path("root");
    fs::create_dir(&root).unwrap();
    let run = desk.run(&["doctor", "--json", "--root", &root]);
    broker.join().unwrap();
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&report).unwrap().replace(desk.dir.path().to_str().unwrap(), "DIR"), @r#"
    {
      "findings": [
        {
          "hint": "write one with at least one `[[pool]]`, and check it with `broker check`",
          "level": "fail",
          "text": "there is no configuration at `DIR/config.toml`"
        },
        {
          "hint": null,
          "level": "ok",
          "text": "the broker answers at `DIR/s`: version 0.1.0, up 3s"
        },
        {
          "hint": null,
          "level": "note",
          "text": "the socket is not at its usual place: whatever starts Nix needs `NIX_BROKER_SOCKET=DIR/s` in its environment"
        },
        {
          "hint": "install Nix, or run this with a `PATH` that has it",
          "level": "fail",
          "text": "there is no `nix` in `PATH`"
        }
      ],
      "schema": 1
    }
    "#);
}

#[test]
fn every_command_has_help_with_examples() {
    let desk = Desk::new();
    for command in
        ["status", "builders", "builds", "top", "why", "start", "drain", "stop", "check", "doctor", "serve"]
    {
        let run = desk.run(&[command, "--help"]);
        assert_eq!(run.code, 0);
        assert!(run.stdout.contains("Example"), "{command}: {}", run.stdout);
    }
    assert_eq!(desk.run(&["--version"]).stdout, format!("broker {}\n", env!("CARGO_PKG_VERSION")));
    let hidden = desk.run(&["--help"]).stdout;
    assert!(!hidden.contains("local-machine"), "{hidden}");
}

fn bill(by: CostBy, rows: Vec<CostRowView>) -> OperatorReply {
    OperatorReply::Cost(CostView { schema: 1, by, money: costly().money, rows })
}

fn cost_row(name: &str, count: u64, time: f64, cost: f64) -> CostRowView {
    let (pool, instance_type, market) = (None, None, None);
    CostRowView { name: name.to_owned(), pool, instance_type, market, count, time, cost }
}

#[test]
fn a_bill_by_days_is_the_one_that_is_shown() {
    let rows = vec![cost_row("2026-11-21", 3, 15_120.0, 3.1), cost_row("2026-11-20", 12, 99_000.0, 18.02)];
    let (run, request) = Desk::new().ask(&["cost"], vec![bill(CostBy::Day, rows)]);
    assert_eq!(request, OperatorRequest::Cost { by: CostBy::Day });
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    Costs $1.22/h now, $3.10 today (cap $20.00), $41.00 this month (UTC; `broker cost`)

    DAY         INSTANCES  TIME    COST
    2026-11-21  3          4h 12m  $3.10
    2026-11-20  12         1d 3h   $18.02
    ");
}

#[test]
fn a_bill_by_builders_and_by_builds_says_what_and_where() {
    let bought = CostRowView {
        pool: Some("x86".to_owned()),
        instance_type: Some("c7a.4xlarge".to_owned()),
        market: Some("spot".to_owned()),
        ..cost_row("i-0abc", 1, 1_860.0, 0.31)
    };
    let (run, request) =
        Desk::new().ask(&["cost", "--by", "builder"], vec![bill(CostBy::Builder, vec![bought])]);
    assert_eq!(request, OperatorRequest::Cost { by: CostBy::Builder });
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    Costs $1.22/h now, $3.10 today (cap $20.00), $41.00 this month (UTC; `broker cost`)

    INSTANCE  POOL  TYPE         MARKET  TIME  COST
    i-0abc    x86   c7a.4xlarge  spot    31m   $0.31
    ");
    let rows = vec![cost_row("chromium-140.0", 2, 7_260.0, 1.4), cost_row("hello-2.12.2", 9, 18.0, 0.002)];
    let (run, _) = Desk::new().ask(&["cost", "--by", "build"], vec![bill(CostBy::Build, rows)]);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    Costs $1.22/h now, $3.10 today (cap $20.00), $41.00 this month (UTC; `broker cost`)

    DERIVATION      POOL  BUILDS  TIME   COST
    chromium-140.0  -     2       2h 1m  $1.40
    hello-2.12.2    -     9       18s    $0.002
    ");
}

#[test]
fn a_bill_over_nothing_says_so_and_one_by_nonsense_is_refused() {
    let nothing = CostView { schema: 1, by: CostBy::Pool, money: None, rows: vec![] };
    let (run, _) = Desk::new().ask(&["cost", "--by", "pool"], vec![OperatorReply::Cost(nothing)]);
    assert_eq!(run.text(), "exit 0\n--- stdout\nNothing has cost anything.\n");
    let run = Desk::new().run(&["cost", "--by", "moon"]);
    assert_eq!(run.code, 2);
    assert!(
        run.stderr.contains("costs are added up by `day`, `pool`, `builder` or `build`"),
        "{}",
        run.stderr
    );
}

#[test]
fn history_lists_what_was_built_and_json_has_all_of_it() {
    let past = |name: &str, outcome: &str, reason: Option<&str>, cost: f64| PastBuildView {
        row: 41,
        ended: 1_795_219_200,
        ago: 3_700.0,
        id: 7,
        drv: drv(name),
        name: name.to_owned(),
        system: "x86_64-linux".to_owned(),
        features: vec!["kvm".to_owned()],
        pool: Some("x86".to_owned()),
        builder: Some("b-1".to_owned()),
        instance: Some("i-0abc".to_owned()),
        instance_type: Some("c7a.4xlarge".to_owned()),
        market: Some("spot".to_owned()),
        waiting: 61.0,
        uploading: 2.5,
        building: 130.0,
        downloading: 1.5,
        took: Some(3.0),
        bytes_up: 1 << 20,
        bytes_direct: 64 << 20,
        bytes_down: 2048,
        attempts: 1,
        outcome: outcome.to_owned(),
        reason: reason.map(str::to_owned),
        cost,
    };
    let builds = vec![
        past("hello-2.12.2", "succeeded", None, 0.02),
        past("broken", "failed", Some("builder exited with 1"), 0.0),
    ];
    let view = HistoryView { schema: 1, builds };
    let reply = || vec![OperatorReply::History(view.clone())];
    let (run, request) = Desk::new().ask(&["history", "--limit", "7"], reply());
    assert_eq!(request, OperatorRequest::History { most: 7, before: None });
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    ENDED      DERIVATION    OUTCOME    WAITED  BUILT   MOVED  WHERE                                           COST
    1h 1m ago  hello-2.12.2  succeeded  1m 1s   2m 10s  4s     x86 (c7a.4xlarge, spot)                         $0.02
    1h 1m ago  broken        failed     1m 1s   2m 10s  4s     x86 (c7a.4xlarge, spot): builder exited with 1  $0.00
    ");
    let (run, request) = Desk::new().ask(&["history", "export"], reply());
    assert_eq!(request, OperatorRequest::History { most: 2000, before: None });
    let lines: Vec<PastBuildView> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, view.builds);
    let (run, _) = Desk::new().ask(&["history", "export", "--format", "csv"], reply());
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("ended,id,name,drv,system,features,outcome,reason,pool,"), "{}", lines[0]);
    assert!(
        lines[2].contains("x86_64-linux,kvm,failed,builder exited with 1,x86,b-1,i-0abc"),
        "{}",
        lines[2]
    );
    let (run, _) = Desk::new().ask(&["history", "--json"], reply());
    assert_eq!(serde_json::from_str::<HistoryView>(&run.stdout).unwrap(), view);
}

/// Every key of a document, by its path; `[]` stands for any entry of a list.
fn keys_of(
    value: &serde_json::Value,
    path: &str,
    found: &mut std::collections::BTreeMap<String, &'static str>,
) {
    use serde_json::Value;
    let kind = match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                keys_of(value, &path, found);
            }
            return;
        }
        Value::Array(values) => {
            for value in values {
                keys_of(value, &format!("{path}[]"), found);
            }
            return;
        }
        Value::Bool(_) => "truth",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Null => "null",
    };
    let known = found.entry(path.to_owned()).or_insert(kind);
    if *known == "null" {
        *known = kind;
    }
}

#[test]
fn the_document_of_status_is_described_key_by_key() {
    let mut view = costly();
    let caps = view.money.as_mut().unwrap();
    (caps.cap_hour, caps.cap_month) = (Some(5.0), Some(200.0));
    view.builders[2].progress = Some("imds closed".to_owned());
    view.builders[0].load = Some(full_swing());
    view.builders[0].shortage = Some("short of memory".to_owned());
    view.builds[1].remaining = Some(480.0);
    let (run, _) = Desk::new().ask(&["status", "--json"], vec![OperatorReply::Status(view)]);
    let document: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(document["schema"], 1);
    let mut printed = std::collections::BTreeMap::new();
    keys_of(&document, "", &mut printed);
    // An entry that is missing in one place is described by its keys in another.
    let paths: Vec<String> = printed.keys().cloned().collect();
    printed.retain(|path, _| !paths.iter().any(|other| other.starts_with(&format!("{path}."))));
    let described: std::collections::BTreeMap<String, &str> = include_str!("../docs/status-json.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(key, rest)| (key.to_owned(), rest.split(" |").next().unwrap()))
        .collect();
    assert_eq!(printed, described, "what is printed, and what docs/status-json.md says");
}

/// A broker that answers a question for a log so.
fn log_of(desk: &Desk, replies: Vec<LogReply>, log: &'static [&'static [u8]]) -> JoinHandle<OperatorRequest> {
    desk.serve(move |mut stream| {
        let _hello: Hello = Frame::read(&mut stream).unwrap().parse().unwrap();
        send(&mut stream, &Reply::Go);
        let request = Frame::read(&mut stream).unwrap().parse().unwrap();
        let mut replies = replies.iter();
        send(&mut stream, replies.next().unwrap());
        for piece in log {
            Frame::Log(piece.to_vec()).write(&mut stream).unwrap();
        }
        for reply in replies {
            send(&mut stream, reply);
        }
        request
    })
}

fn opened() -> LogReply {
    LogReply::Opened { build: 12, drv: drv("hello") }
}

fn log_ended(outcome: Option<&str>, reason: Option<&str>) -> LogReply {
    LogReply::Ended { outcome: outcome.map(str::to_owned), reason: reason.map(str::to_owned) }
}

#[test]
fn a_piped_log_is_the_very_bytes_and_its_end_is_said_to_who_follows() {
    const LOG: &[&[u8]] = &[b"one\n\x1b[31mtw", b"o\n@nix {}\nthree"];
    let desk = Desk::new();
    let broker = log_of(&desk, vec![opened(), log_ended(None, None)], LOG);
    let run = desk.run(&["logs", "hello"]);
    let asked = LogRequest { build: "hello".to_owned(), tail: None, follow: false };
    assert_eq!(broker.join().unwrap(), OperatorRequest::Log(asked));
    assert_eq!((run.code, run.stdout.as_str()), (0, "one\n\x1b[31mtwo\n@nix {}\nthree"));
    assert_eq!(run.stderr, "");

    for (end, code, said) in [
        (log_ended(Some("succeeded"), None), 0, "the build succeeded\n"),
        (
            log_ended(Some("failed"), Some("it exited\x1b[2J with 1")),
            1,
            "the build failed: it exited[2J with 1\n",
        ),
        (log_ended(Some("cancelled"), None), 1, "the build was cancelled\n"),
    ] {
        let desk = Desk::new();
        let broker = log_of(&desk, vec![opened(), end], LOG);
        let run = desk.run(&["logs", "-f", "#12"]);
        let asked = LogRequest { build: "#12".to_owned(), tail: None, follow: true };
        assert_eq!(broker.join().unwrap(), OperatorRequest::Log(asked));
        assert_eq!((run.code, run.stderr.as_str()), (code, said));
    }
}

#[test]
fn a_log_that_cannot_be_had_is_an_error_with_a_hint() {
    let desk = Desk::new();
    let refusal = LogReply::Failed {
        reason: "the log of `hello` is not yours".to_owned(),
        hint: Some("try it with `sudo`".to_owned()),
    };
    let _broker = log_of(&desk, vec![refusal], &[]);
    insta::assert_snapshot!(desk.run(&["logs", "hello"]).text(), @r"
    exit 1
    --- stderr
    error: the log of `hello` is not yours
    hint: try it with `sudo`
    ");
    let desk = Desk::new();
    let _broker = log_of(&desk, vec![opened()], &[b"half"]);
    let run = desk.run(&["logs", "-f", "hello"]);
    assert_eq!((run.code, run.stdout.as_str()), (1, "half"), "the broker went away: {}", run.stderr);
    assert!(run.stderr.contains("the broker closed the connection"), "{}", run.stderr);
}
