//! What is listed: builders, builds, why, cost, history.

use super::*;

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
