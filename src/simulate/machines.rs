//! The machines of the world: bought, ready, taken away, ended.

use std::time::Duration;

use super::buy::{self, Machine};
use super::machine::Power;
use super::running::Life;
use super::world::{Due, World};
use crate::model::{
    BuilderFacts, BuilderId, Demand, HourlyRate, Instance, InstanceId, Market, Offer, PoolName,
};
use crate::scheduler::{BuilderFault, BuilderFaultKind, Event};

/// From a termination until the provider agrees that nothing is left.
const TO_GONE: Duration = Duration::from_secs(30);
/// The same where nobody sends a bill.
const TO_CLOSE: Duration = Duration::from_secs(1);
/// A launch that fails takes this long to say so.
const TO_FAIL: Duration = Duration::from_secs(2);

impl World<'_> {
    pub(super) fn launch(
        &mut self,
        id: BuilderId,
        pool: &PoolName,
        demand: Demand,
        at_most: Option<HourlyRate>,
    ) {
        self.moved = self.now;
        let Some(spec) = self.pools.iter().find(|spec| spec.name == *pool) else { return };
        let moment = self.epoch + self.now;
        let bought = self.prices.buy(spec, demand, at_most, moment, &mut self.random);
        let fails = self.goes_wrong() && self.random.fraction() < self.scenario.faults.failed_launches;
        let refused = || BuilderFault {
            kind: BuilderFaultKind::LaunchFailed,
            reason: "there is no capacity".to_owned(),
        };
        let (machine, fault) = match bought {
            Ok(machine) => (machine, fails.then(refused)),
            Err(fault) => (nothing(), Some(fault)),
        };
        let to_running = machine.to_running;
        self.sites.add(self.now, id, pool.clone(), machine.clone(), buy::slots(spec, machine.power));
        match fault {
            Some(fault) => self.after(TO_FAIL, Due::LaunchFails(id, fault)),
            None => self.after(to_running, Due::Runs(id)),
        }
        self.let_clock_run();
    }

    pub(super) fn goes_wrong(&self) -> bool {
        self.scenario.faults.until.is_none_or(|until| self.now < until)
    }

    pub(super) fn terminate(&mut self, id: BuilderId) {
        let Some(site) = self.sites.all.get(&id) else { return };
        if site.life != Life::Ending {
            self.moved = self.now;
            let to_gone = if site.machine.class.is_some() { TO_GONE } else { TO_CLOSE };
            self.sites.ends(self.now, id);
            self.lose_attempts(id);
            self.after(to_gone, Due::Gone(id));
        }
    }

    pub(super) fn runs(&mut self, id: BuilderId) {
        let Some(site) = self.sites.all.get(&id).filter(|site| site.life == Life::Launching) else { return };
        let instance = Instance {
            id: InstanceId::new(format!("i-{}", id.0)),
            pool: site.pool.clone(),
            class: site.machine.class.clone(),
        };
        let to_ready = site.machine.to_ready;
        self.sites.runs(self.now, id);
        self.after(to_ready, Due::Ready(id));
        self.tell(Event::Launched { builder: id, instance });
    }

    pub(super) fn ready(&mut self, id: BuilderId) {
        let Some(site) = self.sites.all.get(&id).filter(|site| site.life == Life::Booting) else { return };
        let offer = self.pools.iter().find(|spec| spec.name == site.pool).map(|spec| spec.offer.clone());
        let offer =
            offer.unwrap_or_else(|| Offer { systems: [].into(), features: [].into(), mandatory: [].into() });
        let facts = BuilderFacts {
            offer,
            processors: site.machine.power.vcpus,
            nix_version: None,
            cpu_flags: [].into(),
        };
        let is_spot = site.machine.class.as_ref().is_some_and(|class| class.market == Market::Spot);
        self.sites.is_ready(self.now, id);
        let faults = self.scenario.faults;
        let mut befalls = |per_hour: f64, due: Due| {
            let after = self.random.next_after(per_hour);
            let at = after.and_then(|after| self.now.checked_add(after));
            if let Some(at) = at.filter(|at| faults.until.is_none_or(|until| *at < until)) {
                self.at(at, due);
            }
        };
        befalls(if is_spot { faults.interruptions } else { 0.0 }, Due::Interrupted(id));
        befalls(faults.losses, Due::Lost(id));
        self.tell(Event::Ready { builder: id, facts });
    }

    /// A machine is gone: what ran there is lost, and the scheduler hears of it.
    pub(super) fn lost(&mut self, id: BuilderId) {
        let is_there = |life: Life| matches!(life, Life::Booting | Life::Ready);
        if !self.sites.all.get(&id).is_some_and(|site| is_there(site.life)) {
            return;
        }
        self.lose_attempts(id);
        let reason = "the machine is gone".to_owned();
        let fault = BuilderFault { kind: BuilderFaultKind::ConnectionLost, reason };
        self.tell(Event::Lost { builder: id, fault });
    }
}

/// In place of a machine that could not be had.
fn nothing() -> Machine {
    Machine { power: Power::plain(1), class: None, to_running: Duration::ZERO, to_ready: Duration::ZERO }
}
