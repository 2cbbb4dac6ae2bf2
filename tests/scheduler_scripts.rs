//! Stories of the scheduler as text: one file of `tests/scripts` is one story.
//!
//! A file has `pool` lines, then events, each followed by the actions it must give. `wait SECONDS` lets time pass with a
//! tick at every deadline; ticks that want nothing are not shown. Lines that begin with `#` and a blank are comments.
//! `UPDATE_SCRIPTS=1` writes what really happens into the files: read the difference before keeping it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix_broker::model::ec2::{DiskSpec, IdleAction, ImageSpec, Market, Reach};
use nix_broker::model::requirement::CA_DERIVATIONS;
use nix_broker::model::{
    BuildId, BuildRequest, BuilderFacts, BuilderId, Bytes, Caps, DrvPath, Ec2Spec, Ending, Failure,
    FailureKind, Feature, HourlyRate, Hundredths, Instance, InstanceClass, InstanceId, LeaseId, Load,
    LocalSpec, Offer, Outcome, PoolName, PoolSpec, ProviderSpec, Requirement, Slots, Space, Spent, System,
    Usd, UtcDay,
};
use nix_broker::scheduler::{
    Action, Adoption, Answer, AttemptEnd, BuilderFault, BuilderFaultKind, Event, Fleet, Note, Selection,
};

#[test]
fn every_script_happens_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut differing = vec![];
    let mut n_scripts = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let written = std::fs::read_to_string(&path).unwrap();
        let happened = Script::run(&written).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        n_scripts += 1;
        if written == happened {
            continue;
        }
        if std::env::var_os("UPDATE_SCRIPTS").is_some() {
            std::fs::write(&path, &happened).unwrap();
        }
        let lines = written.lines().zip(happened.lines()).enumerate();
        let first = lines.into_iter().find(|(_, (written, happened))| written != happened);
        differing.push(format!("{}: {first:?}", path.display()));
    }
    assert!(n_scripts > 0, "no scripts in {}", directory.display());
    assert!(differing.is_empty(), "first difference (written, happened) of each:\n{}", differing.join("\n"));
}

struct Script {
    pools: Vec<PoolSpec>,
    caps: Caps,
    fleet: Option<Fleet>,
    start: Instant,
    now: Instant,
    leases: BTreeMap<BuildId, LeaseId>,
    places: BTreeMap<BuilderId, PoolName>,
    out: String,
}

type Parsed<T> = Result<T, String>;

impl Script {
    /// What the file would say if it said what happens.
    fn run(text: &str) -> Parsed<String> {
        let now = Instant::now();
        let mut script = Self {
            pools: vec![],
            caps: Caps::default(),
            fleet: None,
            start: now,
            now,
            leases: BTreeMap::new(),
            places: BTreeMap::new(),
            out: String::new(),
        };
        for line in text.lines() {
            if line.starts_with("    ") {
                continue;
            }
            script.out.push_str(line);
            script.out.push('\n');
            if !line.is_empty() && !line.starts_with("# ") {
                script.line(line).map_err(|error| format!("`{line}`: {error}"))?;
            }
        }
        Ok(script.out)
    }

    fn line(&mut self, line: &str) -> Parsed<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["pool", name, ref settings @ ..] => {
                self.pools.push(pool(name, settings)?);
                return Ok(());
            }
            ["caps", ref caps @ ..] => {
                for cap in caps {
                    let (period, amount) = cap.split_once('=').ok_or("has no `=`")?;
                    let amount = Some(Usd::parse(amount).ok_or("is no amount")?);
                    match period {
                        "hour" => self.caps.hour = amount.map(HourlyRate),
                        "day" => self.caps.day = amount,
                        "month" => self.caps.month = amount,
                        other => return Err(format!("`{other}` is no period")),
                    }
                }
                return Ok(());
            }
            ["cost"] => {
                let now = self.now;
                let status = self.fleet().status(now);
                let money = status.money.ok_or("costs nothing")?;
                self.say(&format!("{} now, {} today, {} this month", money.rate, money.today, money.month));
                for builder in status.builders {
                    self.say(&format!("{}: {}", builder.id, builder.cost));
                }
                for build in status.builds {
                    self.say(&format!("{}: {}", build.id, build.cost));
                }
                return Ok(());
            }
            ["wait", seconds] => {
                let end = self.now + Duration::from_secs(number(seconds)?);
                while let Some(at) = self.fleet().next_deadline().filter(|at| *at <= end) {
                    self.now = self.now.max(at);
                    self.apply(Event::Tick);
                }
                self.now = end;
                return Ok(());
            }
            [ask @ ("ask" | "ask-busy" | "ask-remote"), system, ref features @ ..] => {
                let mut asked = request(system, features)?;
                asked.am_willing = ask != "ask-busy";
                asked.settings.only_remote = ask == "ask-remote";
                let line = match self.fleet().offers().answer(&asked) {
                    Answer::Accept { pool } => format!("accept for {pool}"),
                    Answer::Decline { why } => format!("decline: {why}"),
                    Answer::Postpone { why } => format!("postpone: {why}"),
                };
                self.say(&line);
                return Ok(());
            }
            ["explain", build] => {
                let (now, build) = (self.now, self.build(build)?);
                let status = self.fleet().explain(now, build).ok_or("is not known")?;
                for line in status.why {
                    self.say(&line);
                }
                return Ok(());
            }
            _ => {}
        }
        if let ["accept", build, system, features @ ..] = &words[..] {
            let build = self.build(build)?;
            self.apply(Event::Accepted { build, request: request(system, features)? });
            self.apply(Event::InputsKnown(build));
            return Ok(());
        }
        if let ["adopt", pool, ages @ ..] = &words[..] {
            let mut found = vec![];
            for age in ages {
                let (builder, pool) = (self.fleet().reserve_builder(), PoolName::new(*pool));
                self.places.insert(builder, pool.clone());
                let id = InstanceId::new(format!("i-{}", builder.0));
                let instance = Instance { id, pool, class: None };
                found.push(Adoption { builder, instance, age: Duration::from_secs(number(age)?) });
            }
            self.apply(Event::Adopted(found));
            return Ok(());
        }
        let event = self.event(&words)?;
        self.apply(event);
        Ok(())
    }

    fn event(&self, words: &[&str]) -> Parsed<Event> {
        Ok(match *words {
            ["client-gone", build] => Event::ClientGone(self.build(build)?),
            ["end", build, end] => {
                let build = self.build(build)?;
                let lease = *self.leases.get(&build).ok_or("has never run")?;
                Event::AttemptEnded { build, lease, end: attempt_end(end)? }
            }
            ["launched", builder, ref bought @ ..] => {
                let builder = builder_id(builder)?;
                let pool = self.places.get(&builder).ok_or("was never launched")?.clone();
                let id = InstanceId::new(format!("i-{}", builder.0));
                Event::Launched { builder, instance: Instance { id, pool, class: class(bought)? } }
            }
            ["progress", builder, ref text @ ..] => {
                Event::Progress { builder: builder_id(builder)?, text: text.join(" ") }
            }
            ["ready", builder] => Event::Ready { builder: builder_id(builder)?, facts: self.facts(builder)? },
            ["ready", builder, "without", feature] => {
                let mut facts = self.facts(builder)?;
                facts.offer.features.remove(&Feature::new(feature));
                Event::Ready { builder: builder_id(builder)?, facts }
            }
            ["load", builder, ref facts @ ..] => {
                Event::Load { builder: builder_id(builder)?, load: load(facts)? }
            }
            ["lost", builder, kind] => {
                let (kind, reason) = match kind {
                    "budget" => (BuilderFaultKind::OverBudget, "the cheapest that would do costs $0.50/h"),
                    "launch" => (BuilderFaultKind::LaunchFailed, "no capacity"),
                    "boot" => (BuilderFaultKind::BootFailed, "sshd never answered"),
                    "unfit" => (BuilderFaultKind::Unfit, "its host key is another"),
                    "connection" => (BuilderFaultKind::ConnectionLost, "connection reset"),
                    other => return Err(format!("`{other}` is no fault")),
                };
                Event::Lost {
                    builder: builder_id(builder)?,
                    fault: BuilderFault { kind, reason: reason.to_owned() },
                }
            }
            ["interrupted", builder, within] => Event::Interrupted {
                builder: builder_id(builder)?,
                within: Some(Duration::from_secs(number(within)?)),
                why: "spot interruption".to_owned(),
            },
            ["endangered", builder] => Event::Endangered {
                builder: builder_id(builder)?,
                why: "rebalance recommendation".to_owned(),
            },
            ["clock", day] => {
                let day = u32::try_from(number(day)?).map_err(|error| error.to_string())?;
                Event::Clock { day: UtcDay(20_778 + day), aside: vec![] }
            }
            ["collected", builder] => Event::Collected(builder_id(builder)?),
            ["gone", builder] => Event::Gone(builder_id(builder)?),
            ["start", pool] => Event::StartRequested(PoolName::new(pool)),
            ["drain", "all"] => Event::DrainRequested(Selection::All),
            ["drain", builder] => Event::DrainRequested(Selection::One(builder_id(builder)?)),
            ["stop", "all"] => Event::StopRequested(Selection::All),
            ["stop", builder] => Event::StopRequested(Selection::One(builder_id(builder)?)),
            ["shutdown"] => Event::ShutdownRequested,
            ["shutdown", "now"] => Event::ShutdownForced,
            _ => return Err("is not understood".to_owned()),
        })
    }

    fn fleet(&mut self) -> &mut Fleet {
        let (pools, start, caps) = (&self.pools, self.start, self.caps);
        let spent = Spent { day: UtcDay(20_778), ..Spent::default() };
        self.fleet.get_or_insert_with(|| Fleet::new(pools.clone(), start).with_money(caps, &spent))
    }

    fn apply(&mut self, event: Event) {
        let now = self.now;
        for action in self.fleet().apply(now, event) {
            match &action {
                Action::Start { build, lease, .. } => {
                    self.leases.insert(*build, *lease);
                }
                Action::Launch { builder, pool, .. } => {
                    self.places.insert(*builder, pool.clone());
                }
                Action::Terminate { .. }
                | Action::CollectGarbage { .. }
                | Action::Abort { .. }
                | Action::Tell { .. }
                | Action::Finish { .. }
                | Action::Record(_)
                | Action::Exit => {}
            }
            if !matches!(action, Action::Record(_)) {
                self.say(&describe(&action));
            }
        }
    }

    fn say(&mut self, line: &str) {
        let after = (self.now - self.start).as_secs();
        let written = writeln!(self.out, "    {after:>4}s {line}");
        assert_eq!(written, Ok(()));
    }

    fn build(&self, word: &str) -> Parsed<BuildId> {
        word.parse().map_err(|_| format!("`{word}` is no build"))
    }

    fn facts(&self, builder: &str) -> Parsed<BuilderFacts> {
        let name = self.places.get(&builder_id(builder)?).ok_or("was never launched")?;
        let spec = self.pools.iter().find(|spec| spec.name == *name).ok_or("has no pool")?;
        let mut offer = spec.offer.clone();
        offer.features.insert(Feature::new(CA_DERIVATIONS));
        Ok(BuilderFacts {
            offer,
            processors: 4,
            nix_version: None,
            cpu_flags: std::collections::BTreeSet::new(),
        })
    }
}

/// `memory=5` and `disk=5` are percent that are left, `pressure=30` percent of the time in which something waits.
fn load(facts: &[&str]) -> Parsed<Load> {
    let mut load = Load::default();
    for fact in facts {
        let (name, percent) = fact.split_once('=').ok_or("has no `=`")?;
        let percent = number(percent)?;
        match name {
            "memory" => load.memory = Space::new(100 << 30, percent << 30),
            "disk" => load.disk = Space::new(100 << 30, percent << 30),
            "pressure" => load.memory_pressure = u32::try_from(percent * 100).ok().map(Hundredths),
            other => return Err(format!("`{other}` is nothing that a builder says")),
        }
    }
    Ok(load)
}

fn describe(action: &Action) -> String {
    match action {
        Action::Launch { builder, pool, demand, at_most } => {
            let how = if demand.on_demand_only { ", on demand only" } else { "" };
            let price = at_most.map(|rate| format!(", at most {rate}")).unwrap_or_default();
            format!("launch {builder} in {pool} for {}{how}{price}", demand.builds)
        }
        Action::Terminate { builder, ending: Ending::Final, reason } => {
            format!("terminate {builder}: {reason}")
        }
        Action::Terminate { builder, ending: Ending::Idle, reason } => {
            format!("terminate {builder}, or put it aside: {reason}")
        }
        Action::CollectGarbage { builder, bytes } => {
            format!("collect {} of garbage on {builder}", Bytes(*bytes))
        }
        Action::Start { build, builder, lease } => format!("start {build} on {builder}, {lease}"),
        Action::Abort { build, lease } => format!("abort {build}, {lease}"),
        Action::Finish { build, outcome } => match outcome {
            Outcome::Succeeded => format!("finish {build}: succeeded"),
            Outcome::Failed(failure) => format!("finish {build}: {:?}: {failure}", failure.kind),
            Outcome::Cancelled => format!("finish {build}: cancelled"),
        },
        Action::Record(record) => format!("record {record:?}"),
        Action::Exit => "exit".to_owned(),
        Action::Tell { build, note } => {
            let note = match note {
                Note::Queued { pool, ahead } => format!("queued for {pool}, {ahead} ahead"),
                Note::Held { pool, reason } => format!("held in {pool}: {reason}"),
                Note::Launching { pool, builder } => format!("{builder} is launched in {pool}"),
                Note::Booting { builder, instance } => format!("{builder} boots as {instance}"),
                Note::Progress { builder, text, after } => {
                    format!("{builder}: {text}, {} s since its launch", after.as_secs())
                }
                Note::BuilderReady { builder, after } => {
                    format!("{builder} is ready after {} s", after.as_secs())
                }
                Note::BuilderFailed { builder, reason } => format!("{builder} failed: {reason}"),
                Note::Started { builder } => format!("started on {builder}"),
                Note::Moved { builder, reason } => format!("moves away from {builder}: {reason}"),
                Note::Retrying { reason, attempts } => format!("tried again after {attempts}: {reason}"),
            };
            format!("tell {build}: {note}")
        }
    }
}

fn attempt_end(word: &str) -> Parsed<AttemptEnd> {
    let failed = |kind, reason: &str| AttemptEnd::Failed(Failure::new(kind, reason));
    Ok(match word {
        "ok" => AttemptEnd::Succeeded,
        "aborted" => AttemptEnd::Aborted,
        "derivation" => failed(FailureKind::Derivation, "builder exited with 1"),
        "transient" => failed(FailureKind::Transient, "no space left on device"),
        "transfer" => failed(FailureKind::Transfer, "path is not valid"),
        "lost" => failed(FailureKind::BuilderLost, "connection reset"),
        other => return Err(format!("`{other}` is no end")),
    })
}

fn pool(name: &str, settings: &[&str]) -> Parsed<PoolSpec> {
    let mut spec = PoolSpec {
        name: PoolName::new(name),
        offer: Offer {
            systems: [System::new("x86_64-linux")].into(),
            features: [].into(),
            mandatory: [].into(),
        },
        slots: Slots::Fixed(2),
        min_builders: 0,
        max_builders: 2,
        idle_timeout: Duration::from_secs(600),
        surplus_idle_timeout: Duration::from_secs(600),
        launch_horizon: None,
        max_lifetime: Duration::from_secs(86_400),
        launch_timeout: Duration::from_secs(300),
        declines: [].into(),
        direct: true,
        provider: ProviderSpec::Local(LocalSpec { nix_daemon: None, sshd: None, sandbox_paths: vec![] }),
    };
    for setting in settings {
        let (key, value) = setting.split_once('=').ok_or_else(|| format!("`{setting}` has no `=`"))?;
        let small = || number(value).and_then(|n| u32::try_from(n).map_err(|error| error.to_string()));
        match key {
            "system" => spec.offer.systems = [System::new(value)].into(),
            "features" => spec.offer.features = value.split(',').map(Feature::new).collect(),
            "slots" => spec.slots = Slots::Fixed(small()?),
            "sizes" => spec.slots = Slots::Auto { expected: small()?, most: None },
            "ec2" => spec.provider = ProviderSpec::Ec2(ec2(market(value)?)),
            "min" => spec.min_builders = small()?,
            "max" => spec.max_builders = small()?,
            "idle" => spec.idle_timeout = Duration::from_secs(number(value)?),
            "lifetime" => spec.max_lifetime = Duration::from_secs(number(value)?),
            "launch" => spec.launch_timeout = Duration::from_secs(number(value)?),
            other => return Err(format!("`{other}` is no setting")),
        }
    }
    Ok(spec)
}

fn request(system: &str, features: &[&str]) -> Parsed<BuildRequest> {
    let drv = DrvPath::parse("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-hello.drv");
    let features = features.iter().map(|&feature| Feature::new(feature)).collect();
    let requirement = Requirement::new(System::new(system), features);
    let request = BuildRequest::new(drv.map_err(|error| error.to_string())?, requirement);
    Ok(BuildRequest { am_willing: true, ..request })
}

fn market(word: &str) -> Parsed<Market> {
    match word {
        "spot" => Ok(Market::Spot),
        "on-demand" => Ok(Market::OnDemand),
        other => Err(format!("`{other}` is no market")),
    }
}

fn ec2(market: Market) -> Ec2Spec {
    Ec2Spec {
        profile: None,
        regions: vec![],
        market,
        types: vec![],
        exact: false,
        max_price: None,
        image: ImageSpec::Id("ami-0".to_owned()),
        subnets: vec![],
        security_groups: vec![],
        reach: Reach::Public,
        disk: DiskSpec { size: 100, throughput: 250, iops: 3000 },
        idle_action: IdleAction::Terminate,
        lease: Duration::from_secs(600),
        cache: None,
        expiry_role: None,
    }
}

/// Nothing that costs anything, or `MARKET DOLLARS` an hour.
fn class(bought: &[&str]) -> Parsed<Option<InstanceClass>> {
    let [bought, rate] = bought else {
        return if bought.is_empty() { Ok(None) } else { Err("wants a market and a rate".to_owned()) };
    };
    Ok(Some(InstanceClass {
        instance_type: "c7a.4xlarge".to_owned(),
        market: market(bought)?,
        zone: "eu-central-1a".to_owned(),
        rate: HourlyRate(Usd::parse(rate).ok_or("has no rate")?),
        stopped_rate: HourlyRate(Usd::ZERO),
    }))
}

fn builder_id(word: &str) -> Parsed<BuilderId> {
    word.parse().map_err(|_| format!("`{word}` is no builder"))
}

fn number(word: &str) -> Parsed<u64> {
    word.parse().map_err(|_| format!("`{word}` is no number"))
}
