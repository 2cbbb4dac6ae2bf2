//! A thousand ways for things to go wrong between the broker and EC2, and one thing that holds after each: nothing is left.
//!
//! The real provider with its real records, over the real SDK, against an EC2 of our own (`common/fake_ec2`) in simulated
//! time: capacity, quotas, throttling, lost answers, garbage, ids that are not visible yet, spot interruptions, and a
//! broker that is killed at any moment and started again, or never. Machines are simulated by their dead-man alone.
//!
//! `NIX_BROKER_SCHEDULES=17` runs one schedule, `NIX_BROKER_SCHEDULES=0..5000` more of them.

#![cfg(feature = "ec2")]
// The calls of the SDK are futures within futures within futures.
#![recursion_limit = "256"]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot go on says so by panicking"
)]

#[path = "common/fake_ec2/mod.rs"]
mod fake_ec2;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nix_broker::model::ec2::{DiskSpec, IdleAction, ImageSpec, Reach, RoleArn};
use nix_broker::model::{
    BuilderId, Demand, Ec2Spec, Ending, Feature, InstanceId, Market, Offer, PoolName, PoolSpec, ProviderSpec,
    Slots, System,
};
use nix_broker::provider::ec2::api::{Api, ApiError};
use nix_broker::provider::ec2::{Connect, Estate, WallClock};
use nix_broker::provider::{HostKeyPair, LaunchOrder, Launched, Provider, ProviderContext};
use tokio::time::{Instant, sleep};

use fake_ec2::{FakeEc2, FakeInstance, Fault, Machines, Refusal, State};

const REGION: &str = "eu-central-1";
const LEASE: Duration = Duration::from_secs(900);
const HARD: Duration = Duration::from_secs(2 * 3600);
const DEFAULT_SCHEDULES: std::ops::Range<u64> = 0..1000;

/// xorshift64*: every schedule is its number.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        let mut chance = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        chance.below(2);
        chance.below(2);
        chance
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn seconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from * 1000 + self.below((to - from) * 1000))
    }
}

/// The machines: all that is simulated of each is its dead-man, which is what ends them when no broker does.
#[derive(Default)]
struct DeadMen {
    /// By instance: the last renewal of its lease, and when it booted.
    leases: Mutex<BTreeMap<String, (Instant, Instant)>>,
}

impl DeadMen {
    fn renew(&self, id: &str) {
        if let Some((lease, _)) = self.leases.lock().unwrap().get_mut(id) {
            *lease = Instant::now();
        }
    }

    /// It belongs to somebody else, who looks after it.
    fn disregard(&self, id: &str) {
        self.leases.lock().unwrap().remove(id);
    }

    /// As `dead-man.sh`, once in half a minute: a machine without a broker, or one that is too old, ends itself.
    async fn watch(self: Arc<Self>, ec2: FakeEc2) {
        loop {
            sleep(Duration::from_secs(30)).await;
            ec2.tick();
            let due: Vec<String> = {
                let leases = self.leases.lock().unwrap();
                let is_due =
                    |(lease, boot): &(Instant, Instant)| lease.elapsed() >= LEASE || boot.elapsed() >= HARD;
                leases.iter().filter(|(_, times)| is_due(times)).map(|(id, _)| id.clone()).collect()
            };
            for id in due {
                ec2.power_off(&id);
            }
        }
    }
}

impl Machines for DeadMen {
    fn launched(&self, instance: &FakeInstance, user_data: &str) {
        assert!(user_data.contains("dead-man"), "{} has no dead-man", instance.id);
        let now = Instant::now();
        self.leases.lock().unwrap().insert(instance.id.clone(), (now, now));
    }

    fn started(&self, instance: &FakeInstance) {
        let now = Instant::now();
        self.leases.lock().unwrap().insert(instance.id.clone(), (now, now));
    }

    fn ended(&self, instance: &FakeInstance) {
        self.leases.lock().unwrap().remove(&instance.id);
    }
}

struct ToFake(FakeEc2);

impl Connect for ToFake {
    fn connect<'a>(
        &'a self,
        _profile: Option<&'a str>,
        region: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Api, ApiError>> + Send + 'a>> {
        let api = Api::over(self.0.wire(), region.unwrap_or(REGION), 7);
        Box::pin(std::future::ready(Ok(api)))
    }
}

/// One account, one state directory, one schedule.
struct World {
    ec2: FakeEc2,
    dead_men: Arc<DeadMen>,
    state: tempfile::TempDir,
    spec: PoolSpec,
    /// Instances that a live broker has in use: nobody but EC2 may end them.
    in_use: Arc<Mutex<BTreeSet<String>>>,
    /// Those that the broker asked EC2 to end all the same.
    robbed: Arc<Mutex<BTreeSet<String>>>,
}

fn pool(market: Market, idle_action: IdleAction, expiry_role: Option<RoleArn>) -> PoolSpec {
    let ec2 = Ec2Spec {
        profile: None,
        regions: vec![REGION.to_owned()],
        market,
        // As many as need several pages, and no more: most of a schedule's time would go into lists of types.
        types: [
            "c6a.2xlarge",
            "c7a.2xlarge",
            "c8a.2xlarge",
            "m6a.2xlarge",
            "m7a.2xlarge",
            "r6a.2xlarge",
            "c6a.4xlarge",
        ]
        .map(str::to_owned)
        .to_vec(),
        exact: false,
        max_price: None,
        image: ImageSpec::Newest { owner: "427812963091".into(), name: "nixos/26.05*".into() },
        subnets: Vec::new(),
        security_groups: Vec::new(),
        reach: Reach::Private,
        disk: DiskSpec { size: 100, throughput: 500, iops: 3000 },
        idle_action,
        lease: LEASE,
        cache: None,
        expiry_role,
    };
    PoolSpec {
        name: PoolName::new("zen3"),
        offer: Offer {
            systems: [System::new("x86_64-linux")].into(),
            features: [Feature::new("gccarch-znver3")].into(),
            mandatory: BTreeSet::new(),
        },
        slots: Slots::Auto { expected: 8, most: None },
        min_builders: 0,
        max_builders: 4,
        idle_timeout: Duration::from_secs(1200),
        surplus_idle_timeout: Duration::from_secs(1200),
        launch_horizon: None,
        max_lifetime: HARD,
        launch_timeout: Duration::from_secs(300),
        declines: [].into(),
        direct: true,
        provider: ProviderSpec::Ec2(ec2),
    }
}

fn host_key() -> std::io::Result<HostKeyPair> {
    Ok(HostKeyPair {
        private: "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n".into(),
        public: format!("ssh-ed25519 {}", "A".repeat(68)),
    })
}

/// Asked about every request, by its action and form and when it came.
type Chaos = Box<dyn FnMut(&str, &fake_ec2::Form, Duration) -> Option<Fault> + Send>;

/// What goes wrong with requests, until it is over.
fn chaos(world: &World, mut chance: Chance, how_bad: u64, until: Duration) -> Chaos {
    let (in_use, robbed) = (Arc::clone(&world.in_use), Arc::clone(&world.robbed));
    Box::new(move |action, form, now| {
        if action == "TerminateInstances" {
            let in_use = in_use.lock().unwrap();
            robbed
                .lock()
                .unwrap()
                .extend(form.list("InstanceId").into_iter().filter(|id| in_use.contains(id)));
        }
        if now >= until || !chance.percent(how_bad) {
            return None;
        }
        let refuse = |status, code: &str| Fault::Refuse(Refusal::new(status, code, "by chance"));
        let is_launch = action == "RunInstances";
        Some(match chance.below(if is_launch { 12 } else { 8 }) {
            0 => Fault::throttle(),
            1 => Fault::internal(),
            2 => Fault::internal_after(),
            3 => Fault::LostBefore,
            4 | 5 => Fault::LostAfter,
            6 => Fault::html(if chance.percent(50) { 200 } else { 502 }),
            7 => Fault::Slow(chance.seconds(1, 90)),
            8 | 9 => refuse(500, "InsufficientInstanceCapacity"),
            10 => refuse(400, "VcpuLimitExceeded"),
            _ => refuse(400, "InsufficientFreeAddressesInSubnet"),
        })
    })
}

impl World {
    fn new(chance: &mut Chance) -> Self {
        let ec2 = FakeEc2::on_tokio_time();
        ec2.add_image("427812963091", "nixos/26.05.1.abc-x86_64-linux", "x86_64", "2026-06-28T03:14:15.000Z");
        let market = if chance.percent(40) { Market::Spot } else { Market::OnDemand };
        let idle_action = match market {
            Market::OnDemand if chance.percent(40) => {
                IdleAction::Stop { max_stopped: chance.seconds(600, 3600) }
            }
            Market::OnDemand | Market::Spot => IdleAction::Terminate,
        };
        let expiry_role = RoleArn::parse("arn:aws:iam::111122223333:role/r").filter(|_| chance.percent(50));
        let mut spec = pool(market, idle_action, expiry_role);
        let (_, subnets) = ec2.default_network(REGION);
        let ProviderSpec::Ec2(settings) = &mut spec.provider else { unreachable!() };
        settings.subnets = subnets.into_iter().map(|(_, subnet)| subnet).collect();
        settings.security_groups = vec![ec2.default_group(REGION)];
        ec2.settings(|settings| {
            settings.pending = chance.seconds(1, 60);
            settings.shutting_down = chance.seconds(1, 200);
            settings.stopping = chance.seconds(1, 100);
            settings.hidden = chance.seconds(0, 120);
            settings.tags_hidden = chance.seconds(0, 120);
            settings.remembered = chance.seconds(0, 3600);
            settings.latency = Duration::from_millis(chance.below(300));
            settings.page = [5, 100, 1000][chance.below(3) as usize];
        });
        let dead_men = Arc::new(DeadMen::default());
        ec2.machines(dead_men.clone());
        Self {
            ec2,
            dead_men,
            state: tempfile::tempdir().unwrap(),
            spec,
            in_use: Arc::default(),
            robbed: Arc::default(),
        }
    }
}

impl World {
    /// Whether AWS ends by itself what is too old.
    fn expires(&self) -> bool {
        matches!(&self.spec.provider, ProviderSpec::Ec2(spec) if spec.expiry_role.is_some())
    }
}

/// A broker as far as instances go: what `broker::builder_task` and `broker::serve` do with a provider.
struct Broker {
    tasks: tokio::task::JoinSet<()>,
    provider: Arc<Provider>,
}

impl Broker {
    fn start(world: &World, mut chance: Chance, builders: u64) -> Self {
        let mut context =
            ProviderContext::new(world.state.path().to_owned(), client_key(), host_key).unwrap();
        context.estate = Arc::default();
        let fake = world.ec2.clone();
        let clock = WallClock::new(move || {
            SystemTime::UNIX_EPOCH + Duration::from_secs(fake_ec2::EPOCH as u64) + fake.now()
        });
        let estate = Estate::open(world.state.path(), Box::new(ToFake(world.ec2.clone())), clock).unwrap();
        assert!(context.estate.set(Arc::new(estate)).is_ok());
        let provider = Arc::new(Provider::for_pool(&world.spec, &context).unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        let tended = Arc::clone(&provider);
        tasks.spawn(async move { tended.tend().await });
        let lives = Lives {
            provider: Arc::clone(&provider),
            spec: world.spec.clone(),
            dead_men: Arc::clone(&world.dead_men),
            in_use: Arc::clone(&world.in_use),
        };
        tasks.spawn(async move {
            lives.provider.reap_strays().await.unwrap();
            let mut builders_left = builders;
            let mut running = tokio::task::JoinSet::new();
            let survivors = loop {
                match lives.provider.survivors() {
                    Ok(survivors) => break survivors,
                    Err(_blind) => sleep(Duration::from_secs(5)).await,
                }
            };
            for survivor in survivors {
                running.spawn(lives.clone().live(survivor.launched, chance.clone()));
            }
            let mut number = 0;
            while builders_left > 0 {
                builders_left -= 1;
                number += 1;
                chance.below(2);
                let (lives, mut own) = (lives.clone(), Chance::new(chance.0.wrapping_add(number)));
                running.spawn(async move {
                    sleep(own.seconds(0, 600)).await;
                    lives.launch(BuilderId(number), own).await;
                });
            }
            while let Some(ended) = running.join_next().await {
                ended.unwrap();
            }
            std::future::pending::<()>().await;
        });
        Self { tasks, provider }
    }

    /// SIGKILL: nothing of it runs any more, and nothing was told.
    async fn kill(mut self, world: &World) {
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                assert!(error.is_cancelled(), "{error}");
            }
        }
        world.in_use.lock().unwrap().clear();
    }
}

#[derive(Clone)]
struct Lives {
    provider: Arc<Provider>,
    spec: PoolSpec,
    dead_men: Arc<DeadMen>,
    in_use: Arc<Mutex<BTreeSet<String>>>,
}

impl Lives {
    async fn launch(self, builder: BuilderId, mut chance: Chance) {
        let demand = Demand { builds: 1 + chance.below(40) as u32, on_demand_only: chance.percent(20) };
        let order = LaunchOrder { builder, pool: &self.spec, demand, at_most: None, progress: &|_| {} };
        if let Ok(launched) = self.provider.launch(order).await {
            self.live(launched, chance).await;
        }
    }

    /// Boot, work, end: as the builder's task does it.
    async fn live(self, launched: Launched, mut chance: Chance) {
        let id = launched.instance.id.clone();
        self.in_use.lock().unwrap().insert(id.to_string());
        let work = chance.seconds(60, 3000);
        let beats = async {
            loop {
                self.dead_men.renew(id.as_str());
                sleep(Duration::from_secs(20)).await;
            }
        };
        let ending = tokio::select! {
            () = sleep(work) => Ending::Idle,
            _reason = self.provider.gone(&id) => Ending::Final,
            () = beats => unreachable!(),
        };
        self.in_use.lock().unwrap().remove(id.as_str());
        self.end(&id, ending).await;
    }

    async fn end(&self, id: &InstanceId, mut ending: Ending) {
        let mut wait = Duration::from_millis(200);
        while self.provider.terminate(id, ending).await.is_err() {
            ending = Ending::Final;
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(60));
        }
    }
}

fn client_key() -> String {
    format!("ssh-ed25519 {}", "B".repeat(68))
}

async fn schedule(seed: u64) {
    let mut chance = Chance::new(seed);
    let world = World::new(&mut chance);
    // Another broker of the same account, whose machine is none of our business.
    let foreign = launch_foreign(&world).await;
    let how_bad = [0, 3, 10, 30, 60][chance.below(5) as usize];
    let bad_until = chance.seconds(0, 5400);
    let faults = chaos(&world, Chance::new(seed ^ 0xFA17), how_bad, bad_until);
    world.ec2.faults(|known| known.chaos(Some(faults)));
    if chance.percent(30) {
        let until = chance.seconds(60, 3600);
        world.ec2.faults(|known| known.shortage("*", "eu-central-1a", None, Some(until)));
    }
    let comes_back = chance.percent(60);
    // Each line of defence alone: in some schedules no machine ever ends itself, because its user-data never arrived.
    let expires = world.expires();
    let user_data_arrives = !(comes_back || expires) || chance.percent(50);
    let dead_men =
        user_data_arrives.then(|| tokio::spawn(Arc::clone(&world.dead_men).watch(world.ec2.clone())));

    let incarnations = 1 + chance.below(4);
    for incarnation in 0..incarnations {
        let builders = chance.below(4) + u64::from(incarnation == 0);
        let broker = Broker::start(&world, Chance::new(chance.0 ^ incarnation), builders);
        let until = Instant::now() + chance.seconds(1, 2400);
        while Instant::now() < until {
            sleep(Duration::from_secs(15)).await;
            let spot = |instance: &FakeInstance| {
                instance.market == Market::Spot && instance.interrupted_at.is_none()
            };
            if chance.percent(2)
                && let Some(victim) = world.ec2.alive().into_iter().find(|instance| spot(instance))
            {
                world.ec2.interrupt(&victim.id, Duration::from_secs(120));
            }
        }
        broker.kill(&world).await;
        // Off for a while: a reboot, a night, a holiday.
        let off = chance.seconds(0, 1200);
        sleep(off).await;
    }
    assert_eq!(*world.robbed.lock().unwrap(), BTreeSet::new(), "in use, and ended by us");

    if comes_back {
        // A last start in good weather, with nothing to build: it ends what there is.
        let calm = chaos(&world, Chance::new(seed), 0, Duration::ZERO);
        world.ec2.faults(|known| known.chaos(Some(calm)));
        let broker = Broker::start(&world, Chance::new(seed), 0);
        sleep(Duration::from_secs(2 * 3600)).await;
        let records = std::fs::read_dir(world.state.path().join("ec2/intents")).unwrap().count();
        assert_eq!(records, 0, "records are left of nothing");
        assert_eq!(broker.provider.list(), []);
        broker.kill(&world).await;
    } else {
        // No broker ever again: the machines end themselves, or AWS does.
        sleep(Duration::from_secs(3 * 3600)).await;
    }
    if let Some(dead_men) = dead_men {
        dead_men.abort();
    }
    if std::env::var_os("NIX_BROKER_SCHEDULES").is_some() {
        let mut counts = BTreeMap::<String, u32>::new();
        for seen in world.ec2.seen() {
            *counts.entry(seen.action).or_default() += 1;
        }
        let (all, ended) = (world.ec2.bills().len(), world.ec2.fired().len());
        eprintln!("schedule {seed}: {all} instances, {ended} ended by AWS itself, {counts:?}");
    }
    world.ec2.tick();
    look_at_the_bill(&world, &foreign, comes_back, user_data_arrives);
    if expires {
        look_at_what_aws_did(&world, comes_back, how_bad);
    }
}

async fn launch_foreign(world: &World) -> String {
    let state = tempfile::tempdir().unwrap();
    let mut spec = world.spec.clone();
    let ProviderSpec::Ec2(settings) = &mut spec.provider else { unreachable!() };
    settings.expiry_role = None;
    let other = World {
        ec2: world.ec2.clone(),
        dead_men: Arc::clone(&world.dead_men),
        state,
        spec,
        in_use: Arc::default(),
        robbed: Arc::default(),
    };
    let broker = Broker::start(&other, Chance::new(1), 0);
    let demand = Demand { builds: 1, on_demand_only: true };
    let order =
        LaunchOrder { builder: BuilderId(1), pool: &other.spec, demand, at_most: None, progress: &|_| {} };
    let launched = broker.provider.launch(order).await.unwrap();
    broker.kill(&other).await;
    world.dead_men.disregard(launched.instance.id.as_str());
    launched.instance.id.to_string()
}

/// AWS ends what nobody else did, and nothing else.
fn look_at_what_aws_did(world: &World, comes_back: bool, how_bad: u64) {
    let bills = world.ec2.bills();
    for fired in world.ec2.fired() {
        let bill = bills.iter().find(|bill| bill.id == fired.instance).unwrap();
        let (from, to) = *bill.ran.last().unwrap();
        let is_old = to.unwrap() - from >= HARD + LEASE;
        let is_running = matches!(fired.state, State::Pending | State::Running);
        // Where AWS cannot be told of a new start in time, it goes by the old one.
        assert!(!is_running || is_old || how_bad > 0, "{} was robbed by AWS: {bill:?}", bill.id);
    }
    if comes_back {
        let left = world.ec2.schedules();
        assert!(left.is_empty() || how_bad > 0, "left over: {left:?}");
    }
}

fn look_at_the_bill(world: &World, foreign: &str, comes_back: bool, user_data_arrives: bool) {
    let mut by_intent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let guarded = world.ec2.ever_scheduled();
    for bill in world.ec2.bills() {
        if bill.id == foreign {
            assert!(bill.ran.iter().any(|(_, to)| to.is_none()), "another broker's machine was ended");
            continue;
        }
        let intent = bill.tags.get("nix-broker:intent").cloned().unwrap_or_default();
        by_intent.entry(intent).or_default().push(bill.id.clone());
        // Killed between a launch and the word to AWS, and never started again: nobody is left but `broker sweep`.
        let is_unheard_of = !comes_back && !user_data_arrives && !guarded.contains(&bill.id);
        let is_over = bill.ran.iter().all(|(_, to)| to.is_some());
        assert!(is_over || is_unheard_of, "{} still runs: {bill:?}", bill.id);
        // A machine that was put aside, whose broker never came back, costs its disk: `broker sweep` is for that, or AWS.
        if comes_back || guarded.contains(&bill.id) {
            assert!(!bill.is_open, "{} is still there: {bill:?}", bill.id);
        }
        let longest = bill.ran.iter().filter_map(|(from, to)| Some((*to)? - *from)).max().unwrap_or_default();
        assert!(
            !user_data_arrives || longest <= HARD + Duration::from_secs(60),
            "{} ran for {longest:?}",
            bill.id
        );
    }
    for (intent, instances) in by_intent {
        assert_eq!(instances.len(), 1, "launch `{intent}` made {instances:?}");
    }
}

fn wanted() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("NIX_BROKER_SCHEDULES") else { return DEFAULT_SCHEDULES };
    match text.split_once("..") {
        Some((from, to)) => from.parse().unwrap()..to.parse().unwrap(),
        None => {
            let one: u64 = text.parse().unwrap();
            one..one + 1
        }
    }
}

#[test]
fn whatever_goes_wrong_nothing_is_left_and_nothing_is_launched_twice() {
    let range = wanted();
    let next = Arc::new(Mutex::new(range.clone()));
    let failed = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = (0..std::thread::available_parallelism().map_or(1, usize::from))
        .map(|_| {
            let (next, failed) = (Arc::clone(&next), Arc::clone(&failed));
            std::thread::spawn(move || {
                loop {
                    let Some(seed) = next.lock().unwrap().next() else { return };
                    let run = std::panic::catch_unwind(|| {
                        let runtime = tokio::runtime::Builder::new_current_thread()
                            .enable_all()
                            .start_paused(true)
                            .build()
                            .unwrap();
                        runtime.block_on(schedule(seed));
                    });
                    if run.is_err() {
                        failed.lock().unwrap().push(seed);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let failed = failed.lock().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {} schedules failed; one at a time: NIX_BROKER_SCHEDULES={}\n{failed:?}",
        failed.len(),
        range.end - range.start,
        failed[0]
    );
}
