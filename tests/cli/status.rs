//! `broker status` and `broker top`: what is going on.

use super::*;

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

/// What a machine in full swing says of itself.
pub(super) fn full_swing() -> LoadView {
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
