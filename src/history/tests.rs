//! The history as its users meet it: what comes back is what went in, and nothing grows for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{By, CostRow, History, HistoryError, Store};
use crate::model::ec2::Market;
use crate::model::{
    BuildId, BuildRecord, BuilderId, DrvPath, Failure, FailureKind, Feature, HourlyRate, Instance,
    InstanceClass, InstanceId, InstanceRecord, Outcome, Phases, Place, PoolName, Record, Requirement, Spent,
    System, Traffic, Usd, UtcDay,
};

const DAY: u64 = 86_400;
/// 2026-11-21, UTC.
const TODAY: u64 = 20_778 * DAY;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn cents(n: u64) -> Usd {
    Usd::from_micros(n * 10_000)
}

/// A dollar an hour.
fn instance(name: &str, pool: &str) -> Instance {
    let class = InstanceClass {
        instance_type: "c7a.4xlarge".to_owned(),
        market: Market::Spot,
        zone: "eu-central-1a".to_owned(),
        rate: HourlyRate(cents(100)),
        stopped_rate: HourlyRate(Usd::ZERO),
    };
    Instance { id: InstanceId::new(name), pool: PoolName::new(pool), class: Some(class) }
}

fn seen(instance: Instance, age: u64, has_ended: bool) -> Record {
    let (builder, age) = (BuilderId(1), at(age));
    Record::Instance(InstanceRecord {
        builder,
        instance,
        age,
        cost: HourlyRate(cents(100)).over(age),
        has_ended,
    })
}

fn build(id: u64, name: &str, outcome: Outcome, cost: Usd) -> Record {
    let drv = DrvPath::parse(&format!("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-{name}.drv")).unwrap();
    Record::Build(Box::new(BuildRecord {
        build: BuildId(id),
        drv,
        requirement: Requirement::new(
            System::new("x86_64-linux"),
            [Feature::new("kvm"), Feature::new("gccarch-znver3")].into(),
        ),
        place: Some(Place {
            pool: PoolName::new("x86"),
            builder: BuilderId(7),
            instance: Some(instance("i-7", "x86")),
        }),
        phases: Phases { waiting: at(1), uploading: at(2), building: at(3), downloading: at(4) },
        took: Some(at(2)),
        traffic: Traffic { up: 1000, direct: 3000, down: 2000 },
        attempts: 2,
        outcome,
        cost,
    }))
}

fn store(dir: &tempfile::TempDir) -> Store {
    Store::open(dir.path()).unwrap()
}

fn alive(names: &[&str]) -> BTreeSet<InstanceId> {
    names.iter().map(|&name| InstanceId::new(name)).collect()
}

fn brief(rows: &[CostRow]) -> Vec<(&str, u64, u64, Usd)> {
    rows.iter().map(|row| (row.name.as_str(), row.count, row.time.as_secs(), row.cost)).collect()
}

#[test]
fn what_was_built_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let failure = Failure::new(FailureKind::Derivation, "builder exited with 1");
    let records = [
        (at(TODAY), build(1, "hello-2.12", Outcome::Succeeded, cents(3))),
        (at(TODAY + 5), build(2, "gcc-15", Outcome::Failed(failure), cents(50))),
        (at(TODAY + 9), build(3, "hello-2.12", Outcome::Cancelled, cents(1))),
    ];
    store(&dir).write(&records).unwrap();
    let store = store(&dir);
    let rows = store.builds(2, None).unwrap();
    assert_eq!(rows.iter().map(|row| row.build).collect::<Vec<_>>(), [3, 2]);
    let next = store.builds(2, Some(rows[1].row)).unwrap();
    assert_eq!(next.iter().map(|row| row.build).collect::<Vec<_>>(), [1], "and the page before that");
    let gcc = &rows[1];
    assert_eq!((gcc.outcome.as_str(), gcc.reason.as_deref()), ("failed", Some("builder exited with 1")));
    assert_eq!((gcc.ended, gcc.building, gcc.attempts), (at(TODAY + 5), at(3), 2));
    assert_eq!((gcc.instance.as_deref(), gcc.market.as_deref()), (Some("i-7"), Some("spot")));
    assert_eq!(gcc.took, Some(at(2)));
    assert_eq!((gcc.bytes_up, gcc.bytes_direct, gcc.bytes_down), (1000, 3000, 2000));
    assert_eq!(gcc.features, ["gccarch-znver3", "kvm"]);
    let costs = store.costs(at(TODAY + 10), By::Build).unwrap();
    assert_eq!(brief(&costs), [("gcc-15", 1, 9, cents(50)), ("hello-2.12", 2, 18, cents(4))]);
}

#[test]
fn what_runs_over_midnight_costs_something_on_both_days() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    // An hour before midnight until half an hour after it; another for ten seconds, of which EC2 bills sixty.
    let records = [
        (at(TODAY + 1800), seen(instance("i-1", "x86"), 5400, true)),
        (at(TODAY + 4000), seen(instance("i-2", "arm"), 10, true)),
    ];
    store.write(&records).unwrap();
    let aside = Record::PutAside { pool: PoolName::new("arm"), cost: cents(2) };
    store.write(&[(at(TODAY + 4001), aside.clone()), (at(TODAY + 4002), aside)]).unwrap();
    let now = at(TODAY + 5000);
    let minute = HourlyRate(cents(100)).over(at(60));
    let days = store.costs(now, By::Day).unwrap();
    assert_eq!(
        brief(&days),
        [("2026-11-21", 2, 1860, cents(54) + minute), ("2026-11-20", 1, 3600, cents(100))]
    );
    let pools = store.costs(now, By::Pool).unwrap();
    assert_eq!(brief(&pools), [("x86", 1, 5400, cents(150)), ("arm", 1, 60, cents(4) + minute)]);
    let builders = store.costs(now, By::Builder).unwrap();
    assert_eq!(brief(&builders), [("i-2", 1, 60, minute), ("i-1", 1, 5400, cents(150))]);
    let spent = store.begin(now, &alive(&[])).unwrap();
    let today = [(PoolName::new("arm"), cents(4) + minute), (PoolName::new("x86"), cents(50))];
    assert_eq!(spent, Spent { day: UtcDay(20_778), today: today.into(), month: cents(154) + minute });
}

#[test]
fn after_a_crash_the_dead_ended_when_they_were_last_seen_and_the_living_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let both = |age, seconds| {
        [("i-1", age), ("i-2", age)]
            .map(|(name, age)| (at(TODAY + seconds), seen(instance(name, "x86"), age, false)))
    };
    let mut before = store(&dir);
    before.write(&both(0, 0)).unwrap();
    before.write(&both(1800, 1800)).unwrap();
    drop(before);
    let mut after = store(&dir);
    let spent = after.begin(at(TODAY + 3600), &alive(&["i-2", "i-3"])).unwrap();
    assert_eq!(spent.month, cents(150));
    after.write(&[(at(TODAY + 7200), seen(instance("i-2", "x86"), 7201, true))]).unwrap();
    assert_eq!(after.spent(at(TODAY + 9000)).unwrap().month, cents(250));
    // One that seemed dead, because the provider could not be asked, lives after all: one instance still.
    after.write(&[(at(TODAY + 9000), seen(instance("i-1", "x86"), 9000, true))]).unwrap();
    assert_eq!(after.spent(at(TODAY + 9000)).unwrap().month, cents(450));
    assert_eq!(after.costs(at(TODAY + 9000), By::Builder).unwrap().len(), 2);
    // One that was stopped, and started again an hour later, was not paid for in between.
    after.write(&[(at(TODAY + 14_400), seen(instance("i-1", "x86"), 1800, true))]).unwrap();
    assert_eq!(after.spent(at(TODAY + 14_400)).unwrap().month, cents(500));
}

#[test]
fn what_is_old_or_too_much_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let old = at(TODAY - 91 * DAY);
    let aside = Record::PutAside { pool: PoolName::new("x86"), cost: cents(2) };
    let records = [
        (old, build(1, "old", Outcome::Succeeded, Usd::ZERO)),
        (old, seen(instance("i-1", "x86"), 10, true)),
        (old, aside),
        (at(TODAY), build(2, "new", Outcome::Succeeded, Usd::ZERO)),
    ];
    store.write(&records).unwrap();
    let count = |store: &Store, table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        store.connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    let counts = |store: &Store| ["builds", "instances", "put_aside"].map(|table| count(store, table));
    assert_eq!(counts(&store), [1, 0, 0], "a write after a day looks for what is old");
    store
        .connection
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100010)
             INSERT INTO builds (ended, build, drv, name, system, features, waiting, uploading, building, downloading,
             attempts, outcome, cost) SELECT (SELECT ended FROM builds LIMIT 1), i, 'd', 'n', 's', '', 0, 0, 0, 0, 1,
             'succeeded', 0 FROM n",
        )
        .unwrap();
    store.prune(at(TODAY)).unwrap();
    assert_eq!(count(&store, "builds"), 100_000);
    assert_eq!(store.builds(1, None).unwrap()[0].build, 100_010);
}

#[test]
fn a_file_of_the_first_form_is_brought_up_to_date_and_tells_how_long_builds_took() {
    let dir = tempfile::tempdir().unwrap();
    {
        let first = rusqlite::Connection::open(dir.path().join("history.sqlite")).unwrap();
        first.execute_batch(super::schema::STEPS[0]).unwrap();
        first.pragma_update(None, "user_version", 1).unwrap();
        for (name, attempts, outcome) in
            [("once", 1, "succeeded"), ("twice", 2, "succeeded"), ("bad", 1, "failed")]
        {
            let sql = "INSERT INTO builds (ended, build, drv, name, system, features, waiting, uploading, building, \
                       downloading, attempts, outcome, cost) \
                       VALUES (?1, 1, '/x.drv', ?2, 'x86_64-linux', 'kvm big-parallel', 0, 0, 7000, 0, ?3, ?4, 0)";
            first.execute(sql, rusqlite::params![TODAY as i64, name, attempts, outcome]).unwrap();
        }
    }
    let mut store = store(&dir);
    store.write(&[(at(TODAY), build(1, "new", Outcome::Succeeded, cents(1)))]).unwrap();
    let known = store.durations().unwrap();
    let brief: Vec<_> = known.iter().map(|row| (row.name.as_str(), row.is_big, row.took)).collect();
    assert_eq!(brief, [("once", true, at(7)), ("new", false, at(2))]);
    let direct: Vec<_> = store.builds(9, None).unwrap().iter().map(|row| row.bytes_direct).collect();
    assert_eq!(direct, [3000, 0, 0, 0]);
}

#[test]
fn a_damaged_file_is_put_aside_and_a_newer_one_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.sqlite");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    drop(store(&dir));
    assert_eq!(std::fs::read(dir.path().join("history.broken")).unwrap()[0], b'x');
    store(&dir).connection.pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, HistoryError::Newer { found: 99, known: 3, .. }), "{error}");
}

#[test]
fn a_file_that_cannot_be_there_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("history.sqlite")).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("history.sqlite"), "{error}");
}

#[tokio::test]
async fn a_full_history_takes_no_more_and_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let pages: u32 = store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    store.connection.pragma_update_and_check(None, "max_page_count", pages + 2, |_| Ok(())).unwrap();
    let history = History::new(store);
    for id in 0..5_000 {
        history.record(at(TODAY), build(id, "hello", Outcome::Succeeded, Usd::ZERO));
    }
    history.settle().await;
    assert!(history.has_warned.load(std::sync::atomic::Ordering::Relaxed));
    let kept = history.ask(|store| store.builds(10_000, None)).await.unwrap().len();
    assert!(kept < 5_000, "{kept} of 5000 fit into {pages} pages and two");
}

#[tokio::test]
async fn no_history_forgets_everything_and_says_so() {
    let history = History::none();
    history.record(at(TODAY), build(1, "hello", Outcome::Succeeded, Usd::ZERO));
    history.settle().await;
    assert!(matches!(history.ask(|store| store.builds(1, None)).await, Err(HistoryError::None)));
}
