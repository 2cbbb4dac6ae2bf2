//! An EC2 of our own, with what a stand-in that only records cannot have: time, tokens, lost answers, no capacity.
//!
//! Owns one account in a few regions, as seen through the API and as it is billed. Two ways in: [`FakeEc2::wire`] without
//! sockets, so that simulated time may jump; [`http::serve`] for programs that take `AWS_ENDPOINT_URL_EC2`.
//!
//! | concern | where |
//! |---|---|
//! | requests in, answers and faults out | here, `faults` |
//! | forms, filters, documents | `form`, `xml` |
//! | what exists and how it changes with time | `account`, `instance` |
//! | actions | `launch`, `lifecycle`, `describe`, `network`, `vpc`, `images`, `schedules` |
//! | who ran from when to when | `ledger` |
//! | sockets | `http` |

#![allow(dead_code, unused_imports, reason = "every test binary uses another part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail the test")]

mod account;
mod describe;
mod faults;
mod form;
pub(crate) mod http;
mod images;
mod instance;
mod launch;
mod ledger;
mod lifecycle;
mod network;
mod schedules;
mod vpc;
mod xml;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix_broker::provider::ec2::api::{Wire, WireFuture, WireLost, WireRequest, WireResponse};

pub(crate) use account::Settings;
pub(crate) use faults::Fault;
pub(crate) use form::Form;
pub(crate) use images::{Image, Snapshot};
pub(crate) use instance::{FakeInstance, State};
pub(crate) use ledger::Bill;

use account::Account;
use faults::Faults;

/// Time since some beginning, as the caller sees it.
pub(crate) type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What the fake calls the beginning of its clock: 2026-11-21T00:00:00Z.
pub(crate) const EPOCH: i64 = 1_795_219_200;

/// Whoever makes machines of instances hears of them. Called without any lock held.
pub(crate) trait Machines: Send + Sync {
    /// It boots, for the first time, with this user data.
    fn launched(&self, instance: &FakeInstance, user_data: &str);
    /// It boots again after it was stopped.
    fn started(&self, instance: &FakeInstance);
    /// It loses its power: for good, or until it is started.
    fn ended(&self, instance: &FakeInstance);
}

/// What happened to an instance, for [`Machines`].
enum Notice {
    Launched(FakeInstance),
    Started(FakeInstance),
    Ended(FakeInstance),
}

/// A request that arrived, and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Duration,
    pub(crate) region: String,
    pub(crate) action: String,
    pub(crate) form: Form,
    /// Its code, `ok`, or `lost`.
    pub(crate) outcome: String,
}

/// The account. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FakeEc2 {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    account: Mutex<Account>,
    faults: Mutex<Faults>,
    seen: Mutex<Vec<Seen>>,
    machines: Mutex<Option<Arc<dyn Machines>>>,
}

/// A refusal, as EC2 words it.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }
}

/// What an action answers: the inside of its document.
pub(crate) type Answer = Result<String, Refusal>;

/// What an action is told.
pub(crate) struct Asked<'a> {
    pub(crate) now: Duration,
    pub(crate) region: &'a str,
    pub(crate) form: &'a Form,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for FakeEc2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeEc2")
    }
}

impl FakeEc2 {
    /// An empty account that lives by this clock.
    pub(crate) fn new(clock: Clock) -> Self {
        let inner = Inner {
            clock,
            account: Mutex::new(Account::new()),
            faults: Mutex::default(),
            seen: Mutex::default(),
            machines: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// An empty account that lives by tokio's clock, which a test may pause and move.
    pub(crate) fn on_tokio_time() -> Self {
        let start = tokio::time::Instant::now();
        Self::new(Arc::new(move || start.elapsed()))
    }

    /// An empty account that lives by the real clock, this many times as fast.
    pub(crate) fn on_real_time(speed: u32) -> Self {
        let start = std::time::Instant::now();
        Self::new(Arc::new(move || start.elapsed() * speed))
    }

    /// The way in without sockets.
    pub(crate) fn wire(&self) -> Arc<dyn Wire> {
        Arc::new(self.clone())
    }

    pub(crate) fn now(&self) -> Duration {
        (self.inner.clock)()
    }

    /// Changes how the account behaves.
    pub(crate) fn settings(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut lock(&self.inner.account).settings);
    }

    /// Changes what goes wrong.
    pub(crate) fn faults<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        change(&mut lock(&self.inner.faults))
    }

    /// Tells somebody who makes machines of instances.
    pub(crate) fn machines(&self, machines: Arc<dyn Machines>) {
        *lock(&self.inner.machines) = Some(machines);
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        lock(&self.inner.seen).clone()
    }

    /// The requests of this action so far.
    pub(crate) fn seen_of(&self, action: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.action == action).collect()
    }

    /// Everything that was ever launched, as it is now, oldest first.
    pub(crate) fn instances(&self) -> Vec<FakeInstance> {
        self.with_account(|account, _| account.instances.values().cloned().collect())
    }

    /// This instance, as it is now.
    pub(crate) fn instance(&self, id: &str) -> Option<FakeInstance> {
        self.with_account(|account, _| account.instances.get(id).cloned())
    }

    /// What is not terminated, hence costs or may cost.
    pub(crate) fn alive(&self) -> Vec<FakeInstance> {
        self.instances().into_iter().filter(|instance| instance.state != State::Terminated).collect()
    }

    /// The machine of this instance turns itself off.
    pub(crate) fn power_off(&self, id: &str) {
        self.with_account(|account, now| account.power_off(id, now));
    }

    /// EC2 wants this spot instance back, in so long.
    pub(crate) fn interrupt(&self, id: &str, notice: Duration) {
        self.with_account(|account, now| account.interrupt(id, now + notice));
    }

    /// A person, or another program of the account, ends it.
    pub(crate) fn terminate_behind(&self, id: &str) {
        self.with_account(|account, now| account.end(id, now, "Client.UserInitiatedShutdown"));
    }

    /// Puts an image in every region; returns its id, which is the same everywhere.
    pub(crate) fn add_image(&self, owner: &str, name: &str, arch: &str, created: &str) -> String {
        self.with_account(|account, _| account.add_image(owner, name, arch, created))
    }

    /// Takes an image away.
    pub(crate) fn remove_image(&self, id: &str) {
        self.with_account(|account, _| account.images.retain(|image| image.id != id));
    }

    /// The account's own images, oldest first.
    pub(crate) fn own_images(&self) -> Vec<Image> {
        self.with_account(|account, _| {
            account.images.iter().filter(|image| image.owner == images::OWNER).cloned().collect()
        })
    }

    /// The account's snapshots, oldest first.
    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        self.with_account(|account, _| account.snapshots.values().cloned().collect())
    }

    /// Makes a snapshot older than it is, as far as the clock goes back.
    pub(crate) fn change_snapshot(&self, id: &str, change: impl FnOnce(&mut Snapshot)) {
        self.with_account(|account, _| change(account.snapshots.get_mut(id).unwrap()));
    }

    /// Changes an image.
    pub(crate) fn change_image(&self, id: &str, change: impl FnOnce(&mut Image)) {
        self.with_account(|account, _| {
            change(account.images.iter_mut().find(|image| image.id == id).unwrap());
        });
    }

    /// Puts a volume there that belongs to nothing.
    pub(crate) fn add_volume(&self, region: &str, zone: &str, tags: &[(&str, &str)]) -> String {
        self.with_account(|account, now| account.add_volume(region, zone, tags, now))
    }

    /// The default VPC, and its subnets by zone.
    pub(crate) fn default_network(&self, region: &str) -> (String, Vec<(String, String)>) {
        self.with_account(|account, _| account.default_network(region))
    }

    /// Takes the default VPC of a region away, with everything in it.
    pub(crate) fn forget_default_vpc(&self, region: &str) {
        self.with_account(|account, _| account.forget_default_vpc(region));
    }

    /// Takes a subnet away.
    pub(crate) fn forget_subnet(&self, region: &str, subnet: &str) {
        self.with_account(|account, _| account.regions.get_mut(region).unwrap().subnets.remove(subnet));
    }

    /// The VPCs, subnets, groups (without the default ones) and internet gateways of a region, and who is let in.
    pub(crate) fn network(&self, region: &str) -> Vec<String> {
        self.with_account(|account, _| {
            let region = &account.regions[region];
            let groups = region.groups.values().filter(|group| group.name != "default");
            let rules = groups.clone().flat_map(|group| {
                group.ingress.iter().map(|(protocol, from, to, cidr, note)| {
                    format!("{} {protocol} {from}-{to} {cidr} ({note})", group.name)
                })
            });
            let ids = region.vpcs.keys().chain(region.subnets.keys()).chain(region.gateways.keys());
            ids.cloned().chain(groups.clone().map(|group| group.id.clone())).chain(rules).collect()
        })
    }

    /// A VPC of loopback addresses with one subnet in the first zone: whoever is launched there is on this machine.
    pub(crate) fn loopback_subnet(&self, region: &str) -> String {
        self.with_account(|account, _| account.loopback_subnet(region))
    }

    /// The security group that every default VPC has.
    pub(crate) fn default_group(&self, region: &str) -> String {
        self.with_account(|account, _| account.default_group(region))
    }

    /// Its machine writes to its console.
    pub(crate) fn write_console(&self, id: &str, text: &str) {
        self.with_account(|account, _| account.instances.get_mut(id).unwrap().console.push_str(text));
    }

    /// Lets time do its work, and tells the machines; every request does so too.
    pub(crate) fn tick(&self) {
        self.with_account(|_, _| ());
    }

    /// Looks at the account as it is at this moment.
    fn with_account<T>(&self, look: impl FnOnce(&mut Account, Duration) -> T) -> T {
        let now = self.now();
        let (answer, notices) = {
            let mut account = lock(&self.inner.account);
            account.advance(now);
            let answer = look(&mut account, now);
            account.advance(now);
            (answer, std::mem::take(&mut account.notices))
        };
        let machines = lock(&self.inner.machines).clone();
        if let Some(machines) = machines {
            for notice in notices {
                match notice {
                    Notice::Launched(instance) => machines.launched(&instance, &instance.user_data),
                    Notice::Started(instance) => machines.started(&instance),
                    Notice::Ended(instance) => machines.ended(&instance),
                }
            }
        }
        answer
    }

    /// Answers a request as EC2 does, faults included.
    pub(crate) async fn answer(&self, request: WireRequest) -> Result<WireResponse, WireLost> {
        let block = images::to_ebs(&request.target);
        let schedule = schedules::to_scheduler(&request.target);
        let region = region_of(&request.authorization);
        let (action, form) = match (&block, &schedule) {
            (Some(block), _) => (block.action.to_owned(), images::form_of(block)),
            (None, Some(order)) => (order.action.to_owned(), schedules::form_of(order)),
            (None, None) => {
                let form = Form::parse(&request.body);
                (form.get("Action").unwrap_or_default().to_owned(), form)
            }
        };
        let refused = if block.is_some() || schedule.is_some() { images::refused } else { refused };
        let act = |form: &Form| match (&block, &schedule) {
            (Some(block), _) => self.act_ebs(region.as_deref(), &request, block),
            (None, Some(order)) => self.act_scheduler(&request, order),
            (None, None) => self.act(region.as_deref(), &action, form),
        };
        let latency = lock(&self.inner.account).settings.latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let now = self.now();
        let fault = self.faults(|faults| faults.next(&action, &form, now));
        let (answer, outcome, late) = match fault {
            Some(Fault::Refused) => (Err(WireLost::Refused), "lost".to_owned(), Duration::ZERO),
            Some(Fault::LostBefore) => (Err(WireLost::Reset), "lost".to_owned(), Duration::ZERO),
            Some(Fault::LostAfter) => {
                let outcome = act(&form).1;
                (Err(WireLost::Reset), format!("lost {outcome}"), Duration::ZERO)
            }
            Some(Fault::Refuse(refusal)) => (Ok(refused(&refusal)), refusal.code, Duration::ZERO),
            Some(Fault::RefuseAfter(refusal)) => {
                let outcome = act(&form).1;
                (Ok(refused(&refusal)), format!("{} {outcome}", refusal.code), Duration::ZERO)
            }
            Some(Fault::Garbage { status, body }) => {
                (Ok(WireResponse { status, body: body.into_bytes() }), "garbage".to_owned(), Duration::ZERO)
            }
            Some(Fault::Slow(late)) => {
                let (answer, outcome) = act(&form);
                (Ok(answer), outcome, late)
            }
            None => {
                let (answer, outcome) = act(&form);
                (Ok(answer), outcome, Duration::ZERO)
            }
        };
        let region = region.unwrap_or_default();
        lock(&self.inner.seen).push(Seen { at: now, region, action, form, outcome });
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        answer
    }

    /// The same for a request to EBS.
    fn act_ebs(
        &self,
        region: Option<&str>,
        request: &WireRequest,
        block: &images::Block<'_>,
    ) -> (WireResponse, String) {
        let answer = self.with_account(|account, now| {
            let region = region.filter(|region| account.regions.contains_key(*region)).unwrap();
            self.faults(|faults| faults.permission(block.action))?;
            self.faults(|faults| faults.bucket(block.action, now))?;
            account.ebs(request, block, region, now)
        });
        match answer {
            Ok(body) => {
                let body = body.to_string().into_bytes();
                (WireResponse { status: 200, body }, "ok".to_owned())
            }
            Err(refusal) => (images::refused(&refusal), refusal.code),
        }
    }

    /// Does what was asked for; says how it went, in a word.
    fn act(&self, region: Option<&str>, action: &str, form: &Form) -> (WireResponse, String) {
        let answer = self.with_account(|account, now| {
            let region = region.filter(|region| account.regions.contains_key(*region)).ok_or_else(|| {
                let words = "AWS was not able to validate the provided access credentials";
                Refusal::new(401, "AuthFailure", words)
            })?;
            let asked = Asked { now, region, form };
            self.faults(|faults| faults.permission(action))?;
            self.faults(|faults| faults.bucket(action, now))?;
            let asked_dry = form.get("DryRun") == Some("true");
            // A launch is looked at before the dry run says yes, as EC2 does with most of it.
            if action == "RunInstances" {
                return self.faults(|faults| account.run_instances(&asked, faults));
            }
            if asked_dry {
                return Err(dry_run());
            }
            account.perform(action, &asked)
        });
        match answer {
            Ok(inside) => {
                let body = xml::document(&format!("{action}Response"), &inside);
                (WireResponse { status: 200, body: body.into_bytes() }, "ok".to_owned())
            }
            Err(refusal) => (refused(&refusal), refusal.code),
        }
    }
}

pub(crate) fn dry_run() -> Refusal {
    Refusal::new(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
}

impl Account {
    fn perform(&mut self, action: &str, asked: &Asked<'_>) -> Answer {
        match action {
            "DescribeInstances" => self.describe_instances(asked),
            "TerminateInstances" => self.terminate_instances(asked),
            "StopInstances" => self.stop_instances(asked),
            "StartInstances" => self.start_instances(asked),
            "CreateTags" => self.create_tags(asked),
            "GetConsoleOutput" => self.console_output(asked),
            "ModifyInstanceMetadataOptions" => self.modify_metadata(asked),
            "DescribeImages" => self.describe_images(asked),
            "DescribeInstanceTypes" => self.describe_types(asked),
            "DescribeInstanceTypeOfferings" => self.describe_offerings(asked),
            "DescribeSpotPriceHistory" => self.describe_spot_prices(asked),
            "DescribeAvailabilityZones" => self.describe_zones(asked),
            "DescribeVpcs" => self.describe_vpcs(asked),
            "DescribeSubnets" => self.describe_subnets(asked),
            "DescribeSecurityGroups" => self.describe_groups(asked),
            "DescribeVolumes" => self.describe_volumes(asked),
            "DeleteVolume" => self.delete_volume(asked),
            "CreateSecurityGroup" => self.create_group(asked),
            "AuthorizeSecurityGroupIngress" => self.authorize(asked),
            "RevokeSecurityGroupIngress" => self.revoke(asked),
            "DeleteSecurityGroup" => self.delete_group(asked),
            "CreateSubnet" => self.create_subnet(asked),
            "DeleteSubnet" => self.delete_subnet(asked),
            "CreateDefaultVpc" => self.create_default_vpc(asked),
            "DeleteVpc" => self.delete_vpc(asked),
            "DescribeInternetGateways" => self.describe_gateways(asked),
            "DetachInternetGateway" => self.detach_gateway(asked),
            "DeleteInternetGateway" => self.delete_gateway(asked),
            "DescribeRegions" => self.describe_regions(asked),
            "RegisterImage" => self.register_image(asked),
            "CopyImage" => self.copy_image(asked),
            "DeregisterImage" => self.deregister_image(asked),
            "DescribeImageAttribute" => self.image_attribute(asked),
            "ModifyImageAttribute" => self.modify_image(asked),
            "ModifySnapshotAttribute" => self.modify_snapshot(asked),
            "DeleteSnapshot" => self.delete_snapshot(asked),
            "DescribeSnapshots" => self.describe_snapshots(asked),
            other => {
                let words = format!("The action {other} is not valid for this web service.");
                Err(Refusal::new(400, "InvalidAction", words))
            }
        }
    }
}

impl Wire for FakeEc2 {
    fn exchange(&self, request: WireRequest) -> WireFuture {
        let fake = self.clone();
        Box::pin(async move { fake.answer(request).await })
    }
}

fn refused(refusal: &Refusal) -> WireResponse {
    WireResponse { status: refusal.status, body: xml::error(refusal).into_bytes() }
}

/// The region that a signature is for.
fn region_of(authorization: &str) -> Option<String> {
    let scope = authorization.split("Credential=").nth(1)?.split(',').next()?;
    let mut parts = scope.split('/').skip(2);
    let region = parts.next()?;
    parts.next().filter(|service| ["ec2", "ebs"].contains(service)).map(|_| region.to_owned())
}
