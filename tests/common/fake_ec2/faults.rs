//! What goes wrong, and when.
//!
//! Owns the rules: faults in order, faults by chance, missing capacity, missing permissions, throttling, quotas.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nix_broker::model::ec2::Market;

use super::Refusal;
use super::form::{Form, matches};

/// One thing that goes wrong with one request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nobody listens.
    Refused,
    /// The connection breaks; nothing was done.
    LostBefore,
    /// It was done; the connection breaks before the answer.
    LostAfter,
    /// A refusal; nothing was done.
    Refuse(Refusal),
    /// A refusal, though it was done.
    RefuseAfter(Refusal),
    /// Something that is not EC2's.
    Garbage { status: u16, body: String },
    /// It was done at once, and answered this much later.
    Slow(Duration),
}

impl Fault {
    pub(crate) fn throttle() -> Self {
        Self::Refuse(Refusal::new(503, "RequestLimitExceeded", "Request limit exceeded."))
    }

    pub(crate) fn internal() -> Self {
        Self::Refuse(Refusal::new(500, "InternalError", "An internal error has occurred"))
    }

    pub(crate) fn internal_after() -> Self {
        Self::RefuseAfter(Refusal::new(500, "InternalError", "An internal error has occurred"))
    }

    pub(crate) fn html(status: u16) -> Self {
        let body = "<!DOCTYPE html><html><body>It works!</body></html>".to_owned();
        Self::Garbage { status, body }
    }
}

/// A fault that waits for its request.
struct Planned {
    action: String,
    skip: u32,
    times: u32,
    fault: Fault,
}

/// Decides by chance, or by whatever else.
pub(crate) type Chaos = Box<dyn FnMut(&str, &Form, Duration) -> Option<Fault> + Send>;

/// Missing capacity.
#[derive(Clone, Debug)]
pub(crate) struct Shortage {
    instance_type: String,
    zone: String,
    market: Option<Market>,
    until: Option<Duration>,
}

struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled: Duration,
}

/// Everything that goes wrong.
#[derive(Default)]
pub(crate) struct Faults {
    planned: Vec<Planned>,
    chaos: Option<Chaos>,
    shortages: Vec<Shortage>,
    denied: BTreeSet<String>,
    buckets: BTreeMap<String, Bucket>,
    quotas: BTreeMap<Market, u32>,
    pub(crate) no_spot_role: bool,
}

impl Faults {
    /// The next requests of this action (`*` is every action) meet this fault.
    pub(crate) fn plan(&mut self, action: &str, times: u32, fault: Fault) {
        self.plan_after(action, 0, times, fault);
    }

    /// The same, after so many requests that went well.
    pub(crate) fn plan_after(&mut self, action: &str, skip: u32, times: u32, fault: Fault) {
        self.planned.push(Planned { action: action.to_owned(), skip, times, fault });
    }

    /// Asked about every request that no planned fault met.
    pub(crate) fn chaos(&mut self, chaos: Option<Chaos>) {
        self.chaos = chaos;
    }

    /// Nothing planned, nothing by chance; what there is too little of stays so.
    pub(crate) fn calm(&mut self) {
        self.planned.clear();
        self.chaos = None;
    }

    /// There is none of this type (`*` is anything) in this zone and market, until then if it says so.
    pub(crate) fn shortage(
        &mut self,
        instance_type: &str,
        zone: &str,
        market: Option<Market>,
        until: Option<Duration>,
    ) {
        let (instance_type, zone) = (instance_type.to_owned(), zone.to_owned());
        self.shortages.push(Shortage { instance_type, zone, market, until });
    }

    /// There is enough of everything again.
    pub(crate) fn plenty(&mut self) {
        self.shortages.clear();
    }

    /// This identity may not.
    pub(crate) fn deny(&mut self, action: &str) {
        self.denied.insert(action.to_owned());
    }

    /// This identity may.
    pub(crate) fn permit(&mut self, action: &str) {
        self.denied.remove(action);
    }

    /// Requests of this action are counted: so many at once, and so many a second.
    pub(crate) fn throttle(&mut self, action: &str, burst: f64, per_second: f64) {
        let bucket = Bucket { tokens: burst, burst, per_second, filled: Duration::ZERO };
        self.buckets.insert(action.to_owned(), bucket);
    }

    /// At most so many processors at a time in this market.
    pub(crate) fn quota(&mut self, market: Market, vcpus: u32) {
        self.quotas.insert(market, vcpus);
    }

    pub(super) fn next(&mut self, action: &str, form: &Form, now: Duration) -> Option<Fault> {
        let ours = |planned: &&mut Planned| matches(&planned.action, action) && planned.times > 0;
        if let Some(planned) = self.planned.iter_mut().find(ours) {
            if planned.skip == 0 {
                planned.times -= 1;
                return Some(planned.fault.clone());
            }
            planned.skip -= 1;
        }
        self.chaos.as_mut().and_then(|chaos| chaos(action, form, now))
    }

    pub(super) fn permission(&self, action: &str) -> Result<(), Refusal> {
        if !self.denied.contains(action) {
            return Ok(());
        }
        let service = match action {
            "StartSnapshot" | "PutSnapshotBlock" | "CompleteSnapshot" => "ebs",
            "CreateSchedule" | "UpdateSchedule" | "DeleteSchedule" => "scheduler",
            _ => "ec2",
        };
        let permission = format!("{service}:{action}");
        let message = format!(
            "You are not authorized to perform this operation. User: arn:aws:iam::111122223333:user/someone is not \
             authorized to perform: {permission} because no identity-based policy allows the {permission} action. \
             Encoded authorization failure message: {}",
            "x7Yq".repeat(100)
        );
        Err(Refusal::new(403, "UnauthorizedOperation", message))
    }

    pub(super) fn bucket(&mut self, action: &str, now: Duration) -> Result<(), Refusal> {
        let Some(bucket) = self.buckets.get_mut(action) else { return Ok(()) };
        let passed = now.saturating_sub(bucket.filled).as_secs_f64();
        bucket.filled = now;
        bucket.tokens = (bucket.tokens + passed * bucket.per_second).min(bucket.burst);
        if bucket.tokens < 1.0 {
            return Err(Refusal::new(503, "RequestLimitExceeded", "Request limit exceeded."));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    pub(super) fn capacity(
        &self,
        kind: &str,
        zone: &str,
        market: Market,
        now: Duration,
    ) -> Result<(), Refusal> {
        let short = self.shortages.iter().any(|shortage| {
            matches(&shortage.instance_type, kind)
                && matches(&shortage.zone, zone)
                && shortage.market.is_none_or(|of| of == market)
                && shortage.until.is_none_or(|until| now < until)
        });
        if !short {
            return Ok(());
        }
        let message = format!(
            "We currently do not have sufficient {kind} capacity in the Availability Zone you requested ({zone}). Our \
             system will be working on provisioning additional capacity."
        );
        Err(Refusal::new(500, "InsufficientInstanceCapacity", message))
    }

    pub(super) fn within_quota(&self, market: Market, used: u32, more: u32) -> Result<(), Refusal> {
        let Some(quota) = self.quotas.get(&market) else { return Ok(()) };
        if used + more <= *quota {
            return Ok(());
        }
        Err(match market {
            Market::OnDemand => Refusal::new(
                400,
                "VcpuLimitExceeded",
                format!(
                    "You have requested more vCPU capacity than your current vCPU limit of {quota} allows"
                ),
            ),
            Market::Spot => {
                Refusal::new(400, "MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
            }
        })
    }
}
