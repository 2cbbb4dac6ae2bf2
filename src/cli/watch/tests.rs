//! The view as a person sees it, for pictures made up here; the real thing in a real terminal is in tests/faces.rs.

use proptest::prelude::*;

use super::draw::draw;
use super::keys::Key;
use super::model::{Effect, Event, Item, Link, Model, Page};
use crate::cli::log_lines::LogLine;
use crate::ipc::view::{
    BuildView, BuilderView, EndedView, FaultView, LoadView, MoneyView, PoolView, StatusView,
};
use crate::ipc::{OperatorRequest, Target};

fn pool(name: &str) -> PoolView {
    PoolView {
        name: name.to_owned(),
        ready: 0,
        starting: 0,
        ending: 0,
        max_builders: 4,
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
        instance: Some(format!("i-{id}")),
        state: state.to_owned(),
        progress: None,
        in_state: 138.5,
        age: 700.0,
        slots_used: 0,
        slots: 8,
        ends_in: None,
        instance_type: Some("c7a.4xlarge".to_owned()),
        market: Some("spot".to_owned()),
        zone: Some("eu-central-1a".to_owned()),
        rate: Some(0.31),
        cost: Some(0.042),
        shortage: None,
        load: None,
    }
}

fn build(id: u64, name: &str, phase: &str, pool: &str) -> BuildView {
    BuildView {
        id,
        drv: format!("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-{name}.drv"),
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

fn on(builder: &str, build: BuildView) -> BuildView {
    BuildView { builder: Some(builder.to_owned()), cost: Some(0.011), ..build }
}

/// A busy afternoon with a bit of everything.
fn busy() -> StatusView {
    let x86 = PoolView {
        ready: 2,
        ending: 1,
        slots_used: 3,
        slots: 16,
        queued: 1,
        rate: Some(0.93),
        today: Some(2.1),
        ..pool("x86")
    };
    let arm = PoolView { starting: 1, queued: 1, rate: Some(0.21), today: Some(1.0), ..pool("arm64") };
    let fault = FaultView { reason: "launch refused: no capacity\x1b[2J".to_owned(), ago: 184.0 };
    let big = PoolView { queued: 1, last_fault: Some(fault), cooling: Some(56.0), ..pool("big") };
    let boots = "waits for sshd".to_owned();
    let busy = LoadView {
        cpu: Some(87.5),
        memory_total: Some(64 << 30),
        memory_available: Some(24 << 30),
        ..LoadView::default()
    };
    StatusView {
        schema: 1,
        version: "0.3.1".to_owned(),
        uptime: 15_120.0,
        accepting: true,
        ended: EndedView { succeeded: 12, failed: 1, cancelled: 0 },
        money: Some(MoneyView {
            rate: 1.14,
            today: 3.104_2,
            month: 41.0,
            cap_hour: None,
            cap_day: Some(20.0),
            cap_month: None,
        }),
        pools: vec![x86, arm, big],
        builders: vec![
            BuilderView { slots_used: 2, load: Some(busy), ..builder("b-1", "x86", "ready") },
            BuilderView { ends_in: Some(250.0), ..builder("b-2", "x86", "ready") },
            BuilderView { slots: 0, progress: Some(boots), ..builder("b-3", "arm64", "booting") },
            BuilderView { slots_used: 1, ..builder("b-4", "x86", "draining") },
        ],
        builds: vec![
            BuildView { ahead: Some(1), ..build(7, "openssl-3.5.1", "queued", "x86") },
            BuildView { remaining: Some(480.0), ..on("b-1", build(8, "linux-6.12.38", "building", "x86")) },
            BuildView { attempts: 2, ..on("b-4", build(9, "hello-2.12.2", "uploading", "x86")) },
            BuildView { ahead: Some(0), ..build(10, "gcc-15.1.0", "queued", "arm64") },
            BuildView { ahead: Some(0), ..build(11, "chromium-140.0", "queued", "big") },
            BuildView { pool: None, ..build(12, "bash-5.3", "accepted", "x86") },
            BuildView {
                reason: Some("builder for x failed with exit code 1".to_owned()),
                ..on("b-1", build(5, "make-4.4.1", "failed", "x86"))
            },
            on("b-1", build(4, "zlib-1.3.1", "succeeded", "x86")),
        ],
    }
}

fn model(view: StatusView) -> Model {
    let mut model = Model::new();
    model.update(Event::Picture(Box::new(view)));
    model
}

fn with_log(view: StatusView) -> Model {
    let mut model = model(view);
    let text = |text: &str| LogLine::Text(text.to_owned());
    let lines = vec![
        text("unpacking sources"),
        LogLine::Phase("buildPhase".to_owned()),
        text("  CC      kernel/fork.o"),
        text("  CC      kernel/exit.o"),
    ];
    model.update(Event::Log { build: 8, lines });
    model
}

fn screen(model: &Model, width: u16, height: u16) -> String {
    draw(model, width, height).iter().map(|line| format!("{}\n", line.text().trim_end())).collect()
}

fn press(model: &mut Model, keys: &str) -> Vec<Effect> {
    keys.chars().flat_map(|key| model.update(Event::Key(Key::Char(key)))).collect()
}

#[test]
fn a_busy_afternoon_on_a_usual_terminal() {
    insta::assert_snapshot!(screen(&with_log(busy()), 80, 24));
}

#[test]
fn a_busy_afternoon_on_a_narrow_terminal() {
    insta::assert_snapshot!(screen(&with_log(busy()), 40, 32));
}

#[test]
fn a_busy_afternoon_on_a_wide_terminal() {
    insta::assert_snapshot!(screen(&with_log(busy()), 150, 44));
}

#[test]
fn nothing_to_do_says_so() {
    let view = StatusView {
        builders: Vec::new(),
        builds: Vec::new(),
        money: None,
        pools: vec![pool("x86")],
        ended: EndedView { succeeded: 0, failed: 0, cancelled: 0 },
        ..busy()
    };
    insta::assert_snapshot!(screen(&model(view), 80, 12));
}

#[test]
fn a_launch_that_is_held_and_an_end_of_the_broker_are_said() {
    let capped = Some("the cap of $20.00 a day is reached".to_owned());
    let pools = vec![PoolView { capped, queued: 1, ..pool("big") }];
    let view = StatusView { accepting: false, pools, ..busy() };
    insta::assert_snapshot!(screen(&model(view), 80, 30));
}

#[test]
fn help_names_every_key() {
    let mut model = model(busy());
    press(&mut model, "?");
    insta::assert_snapshot!(screen(&model, 80, 16));
    press(&mut model, "x");
    assert_eq!(model.page, Page::Overview);
}

#[test]
fn a_log_fills_the_screen_and_scrolls() {
    let mut model = with_log(busy());
    press(&mut model, "l");
    let lines = (1..=40).map(|n| LogLine::Text(format!("line {n}"))).collect();
    model.update(Event::Log { build: 8, lines });
    insta::assert_snapshot!("log_at_its_end", screen(&model, 60, 10));
    press(&mut model, "kkk");
    insta::assert_snapshot!("log_scrolled", screen(&model, 60, 10));
    let above = screen(&model, 60, 10);
    model.update(Event::Log { build: 8, lines: vec![LogLine::Text("one more".to_owned())] });
    assert_eq!(screen(&model, 60, 10).replace("4 lines", "3 lines"), above, "who reads is not disturbed");
    press(&mut model, "G");
    model.update(Event::LogEnded { build: 8, how: "the build succeeded".to_owned() });
    let end = screen(&model, 60, 10);
    assert!(end.contains("one more\n  the build succeeded\n"), "{end}");
    assert_eq!(press(&mut model, "q"), []);
    assert_eq!(model.page, Page::Overview);
}

#[test]
fn a_builder_is_drained_at_once_and_stopped_after_a_question() {
    let mut model = model(busy());
    assert_eq!(press(&mut model, "d"), [], "nothing is selected");
    assert!(screen(&model, 80, 24).contains("select the builder to drain"));
    let target = |id: &str| Target::Builder(id.to_owned());
    press(&mut model, "j");
    assert_eq!(model.selected, Some(Item::Builder("b-1".to_owned())));
    assert_eq!(press(&mut model, "d"), [Effect::Order(OperatorRequest::Drain { target: target("b-1") })]);
    assert_eq!(press(&mut model, "s"), []);
    assert!(screen(&model, 80, 24).contains("stop b-1 now? its 2 builds begin again elsewhere: y/n"));
    assert_eq!(press(&mut model, "n"), []);
    assert!(screen(&model, 80, 24).contains("b-1 goes on"));
    assert_eq!(press(&mut model, "sy"), [Effect::Order(OperatorRequest::Stop { target: target("b-1") })]);
    // On the line of a build neither does anything.
    press(&mut model, "jjjjds");
    assert_eq!(model.selected, Some(Item::Build(8)));
    assert!(screen(&model, 80, 24).contains("select the builder to stop"));
}

#[test]
fn a_question_about_a_builder_that_has_gone_is_withdrawn() {
    let mut model = model(busy());
    press(&mut model, "js");
    let view = busy();
    let builders = view.builders[1..].to_vec();
    model.update(Event::Picture(Box::new(StatusView { builders, ..view })));
    assert_eq!(press(&mut model, "y"), []);
}

#[test]
fn the_log_follows_the_selection_else_a_build_that_runs() {
    let mut model = Model::new();
    assert_eq!(model.update(Event::Picture(Box::new(busy()))), [Effect::Follow(Some(8))]);
    let followed = |effects: Vec<Effect>| effects;
    assert_eq!(followed(press(&mut model, "jjjj")), [Effect::Follow(None), Effect::Follow(Some(9))], "b-4");
    assert_eq!(followed(press(&mut model, "j")), [Effect::Follow(Some(8))]);
    model.update(Event::Log { build: 9, lines: vec![LogLine::Text("late".to_owned())] });
    assert!(model.tail.lines.is_empty(), "lines of another build are passed over");
}

#[test]
fn a_broker_that_goes_and_comes_back_is_told() {
    let mut model = with_log(busy());
    model.update(Event::Lost("the broker is not running".to_owned()));
    for _ in 0..3 {
        model.update(Event::Tick);
    }
    model.update(Event::Lost("the broker is not running".to_owned()));
    insta::assert_snapshot!(screen(&model, 80, 24));
    press(&mut model, "j");
    assert_eq!(press(&mut model, "d"), [], "there is nobody to tell");
    let effects = model.update(Event::Picture(Box::new(busy())));
    assert_eq!(model.link, Link::Up);
    assert!(matches!(effects[..], [Effect::Follow(Some(_))]), "its builds are others: {effects:?}");
    assert!(screen(&model, 80, 24).contains("the broker is back, after 3s"));
}

#[test]
fn a_broker_that_was_never_there_is_told() {
    let mut model = Model::new();
    assert!(screen(&model, 80, 24).contains("connecting"));
    model.update(Event::Lost("the broker is not running".to_owned()));
    assert!(screen(&model, 80, 24).contains("NO BROKER"));
}

/// More than any screen holds.
fn crowd() -> StatusView {
    let view = busy();
    let builders = (1..=30).map(|n| builder(&format!("b-{n}"), "x86", "ready")).collect();
    let running = (1..=200).map(|n| on("b-1", build(n, &format!("package-{n}"), "building", "x86")));
    let waiting = (201..=400).map(|n| build(n, &format!("package-{n}"), "queued", "x86"));
    StatusView { builders, builds: running.chain(waiting).collect(), ..view }
}

#[test]
fn a_crowd_is_cut_and_counted() {
    insta::assert_snapshot!(screen(&model(crowd()), 80, 24));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_size_is_kept_to_and_the_selected_line_is_in_sight(
        width in 0_u16..160, height in 0_u16..60, steps in 0_usize..440, log in any::<bool>(),
    ) {
        let mut model = if log { with_log(crowd()) } else { model(crowd()) };
        for _ in 0..steps {
            model.update(Event::Key(Key::Down));
        }
        let lines = draw(&model, width, height);
        prop_assert_eq!(lines.len(), usize::from(height));
        for line in &lines {
            prop_assert!(line.width() <= usize::from(width), "{:?}", line.text());
        }
        if steps > 0 && height >= 20 && width >= 20 {
            let marked = lines.iter().filter(|line| line.text().starts_with("> ")).count();
            prop_assert_eq!(marked, 1);
        }
    }
}
