//! What builders cost, and the caps on it.
//!
//! Owns the rules of the account:
//!
//! - A builder costs its instance's rate from the launch until the provider agrees that it is gone, a minute at least. That
//!   is a little more than the bill, never less.
//! - A build costs, for the time of its leases, the rate of its builder divided by the builds that run there at that moment.
//!   What a builder costs while it boots or is idle is its own: no build is charged for it.
//! - Days and months are those of UTC. What runs over midnight is split there.
//! - Under a cap per hour launches go one after another, each with what is left of the cap as its limit, because only its
//!   answer says what a machine costs.
//! - When a day or a month has reached its cap, nothing is launched and no build is started on what is paid for; what runs
//!   is finished, and every builder ends when it is idle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::pool::PoolIx;
use crate::model::day::UtcDay;
use crate::model::{Caps, HourlyRate, LeaseId, PoolName, Spent, Usd};

/// The least that EC2 bills.
const SHORTEST_BILL: Duration = Duration::from_secs(60);
/// Parts of a micro-dollar in which the shares of builds are kept.
const PARTS: u128 = 1_000_000;

/// What a machine has cost that runs for this long.
pub(super) fn cost_of(rate: HourlyRate, age: Duration) -> Usd {
    rate.over(age.max(SHORTEST_BILL))
}

/// The account, but for what living builders have cost since their part was last booked.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub(super) caps: Caps,
    /// The day of `today`.
    day: UtcDay,
    /// By pool.
    today: BTreeMap<PoolIx, Usd>,
    /// Today, in pools that are not configured any more.
    elsewhere: Usd,
    month: Usd,
    /// What instances cost that are stopped, by pool, and since when that is booked.
    aside: BTreeMap<PoolIx, HourlyRate>,
    aside_since: Option<Instant>,
    /// The cap of a day or month that is reached, as a sentence fragment.
    pub(super) reached: Option<String>,
}

impl Ledger {
    pub(super) fn new(caps: Caps, spent: &Spent, pool: impl Fn(&PoolName) -> Option<PoolIx>) -> Self {
        let mut ledger = Self { caps, day: spent.day, month: spent.month, ..Self::default() };
        for (name, amount) in &spent.today {
            match pool(name) {
                Some(ix) => *ledger.today.entry(ix).or_default() += *amount,
                None => ledger.elsewhere += *amount,
            }
        }
        ledger
    }

    /// Books an amount of today.
    pub(super) fn book(&mut self, pool: PoolIx, amount: Usd) {
        *self.today.entry(pool).or_default() += amount;
        self.month += amount;
    }

    /// Books what stopped instances have cost until now, and takes note of those there are.
    /// Answers what it booked.
    pub(super) fn put_aside(
        &mut self,
        now: Instant,
        aside: BTreeMap<PoolIx, HourlyRate>,
    ) -> Vec<(PoolIx, Usd)> {
        let since = self.aside_since.replace(now).unwrap_or(now);
        let time = now.saturating_duration_since(since);
        let before = std::mem::replace(&mut self.aside, aside);
        let costs: Vec<_> = before.into_iter().map(|(pool, rate)| (pool, rate.over(time))).collect();
        for (pool, cost) in &costs {
            self.book(*pool, *cost);
        }
        costs
    }

    /// What stopped instances cost.
    pub(super) fn aside(&self) -> HourlyRate {
        self.aside.values().copied().sum()
    }

    /// What stopped instances of one pool cost.
    pub(super) fn aside_of(&self, pool: PoolIx) -> HourlyRate {
        self.aside.get(&pool).copied().unwrap_or_default()
    }

    /// Another day may have begun. Everything of the old one has been booked.
    pub(super) fn turn_to(&mut self, day: UtcDay) {
        // A clock that is set back does not bring spent money back.
        if day <= self.day {
            return;
        }
        if day.month() != self.day.month() {
            self.month = Usd::ZERO;
        }
        self.today.clear();
        self.elsewhere = Usd::ZERO;
        self.day = day;
    }

    /// What is booked for today in one pool.
    pub(super) fn today_of(&self, pool: PoolIx) -> Usd {
        self.today.get(&pool).copied().unwrap_or_default()
    }

    /// What is booked for today.
    pub(super) fn today(&self) -> Usd {
        self.today.values().copied().sum::<Usd>() + self.elsewhere
    }

    /// What is booked for this month.
    pub(super) fn month(&self) -> Usd {
        self.month
    }

    /// Looks whether a cap is reached with this much that is not booked yet. Answers whether one is.
    pub(super) fn check(&mut self, unbooked: Usd) -> bool {
        let (today, month) = (self.today() + unbooked, self.month + unbooked);
        let day = self
            .caps
            .day
            .filter(|cap| today >= *cap)
            .map(|cap| format!("the cap of {cap} a day is reached ({today} spent on {}, UTC)", self.day));
        let reached = day.or_else(|| {
            let cap = self.caps.month.filter(|cap| month >= *cap)?;
            Some(format!(
                "the cap of {cap} a month is reached ({month} spent since {}, UTC)",
                self.day.month()
            ))
        });
        // The words of the moment at which it was reached stay: a new picture for every cent serves nobody.
        match (&self.reached, reached) {
            (Some(_), Some(_)) => {}
            (_, reached) => self.reached = reached,
        }
        self.reached.is_some()
    }
}

/// The shares of the builds of one builder: how much one build would have been charged that ran there all the time.
#[derive(Clone, Debug, Default)]
pub(super) struct Tab {
    per_build: u128,
    since: Option<Instant>,
    /// The reading at which each lease began.
    opened: BTreeMap<LeaseId, u128>,
}

impl Tab {
    fn read(&self, now: Instant, rate: HourlyRate) -> u128 {
        let (Some(since), builds) = (self.since, self.opened.len() as u128) else { return self.per_build };
        let micros = now.saturating_duration_since(since).as_micros();
        let product = u128::from(rate.0.micros()).saturating_mul(micros).saturating_mul(PARTS);
        self.per_build + (product / 3_600_000_000).checked_div(builds).unwrap_or(0)
    }

    fn bring_up_to(&mut self, now: Instant, rate: HourlyRate) {
        self.per_build = self.read(now, rate);
        self.since = Some(now);
    }

    /// A lease begins.
    pub(super) fn open(&mut self, now: Instant, rate: HourlyRate, lease: LeaseId) {
        self.bring_up_to(now, rate);
        self.opened.insert(lease, self.per_build);
    }

    /// What a lease costs so far.
    pub(super) fn so_far(&self, now: Instant, rate: HourlyRate, lease: LeaseId) -> Usd {
        let opened = self.opened.get(&lease).copied();
        let parts = opened.map_or(0, |opened| self.read(now, rate).saturating_sub(opened));
        Usd::from_micros(u64::try_from(parts / PARTS).unwrap_or(u64::MAX))
    }

    /// A lease ends. Answers what it costs.
    pub(super) fn close(&mut self, now: Instant, rate: HourlyRate, lease: LeaseId) -> Usd {
        let cost = self.so_far(now, rate, lease);
        self.bring_up_to(now, rate);
        self.opened.remove(&lease);
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: HourlyRate = HourlyRate(Usd::from_micros(3_600_000));

    fn dollars(cents: u64) -> Usd {
        Usd::from_micros(cents * 10_000)
    }

    #[test]
    fn a_build_pays_for_its_part_of_the_machine_and_not_for_idleness() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut tab = Tab::default();
        // 100 s idle, 100 s alone, 100 s in company, 100 s alone again: at $0.001 a second.
        tab.open(at(100), RATE, LeaseId(1));
        tab.open(at(200), RATE, LeaseId(2));
        assert_eq!(tab.so_far(at(250), RATE, LeaseId(1)), Usd::from_micros(125_000));
        assert_eq!(tab.close(at(300), RATE, LeaseId(1)), Usd::from_micros(150_000));
        assert_eq!(tab.close(at(400), RATE, LeaseId(2)), Usd::from_micros(150_000));
        assert_eq!(tab.close(at(500), RATE, LeaseId(2)), Usd::ZERO, "closed already");
        tab.open(at(900), RATE, LeaseId(3));
        assert_eq!(tab.close(at(901), RATE, LeaseId(3)), Usd::from_micros(1_000));
    }

    #[test]
    fn a_day_that_is_over_is_forgotten_and_a_month_is_not() {
        let caps = Caps { hour: None, day: Some(dollars(100)), month: Some(dollars(250)) };
        let mut ledger = Ledger::new(caps, &Spent { day: UtcDay(20_778), ..Spent::default() }, |_| None);
        ledger.book(PoolIx(0), dollars(90));
        assert!(!ledger.check(dollars(9)));
        assert!(ledger.check(dollars(10)));
        assert_eq!(
            ledger.reached.as_deref(),
            Some("the cap of $1.00 a day is reached ($1.00 spent on 2026-11-21, UTC)")
        );
        ledger.turn_to(UtcDay(20_779));
        assert!(!ledger.check(dollars(10)));
        ledger.turn_to(UtcDay(20_778));
        ledger.book(PoolIx(1), dollars(95));
        assert!(!ledger.check(Usd::ZERO));
        assert_eq!(
            (ledger.today(), ledger.today_of(PoolIx(0)), ledger.month()),
            (dollars(95), Usd::ZERO, dollars(185))
        );
        ledger.turn_to(UtcDay(20_780));
        assert!(ledger.check(dollars(65)));
        assert_eq!(
            ledger.reached.as_deref(),
            Some("the cap of $2.50 a month is reached ($2.50 spent since 2026-11-01, UTC)")
        );
        ledger.turn_to(UtcDay(20_790));
        assert_eq!(ledger.month(), Usd::ZERO);
    }

    #[test]
    fn stopped_instances_are_paid_for_too() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(ledger.put_aside(at(0), [(PoolIx(0), RATE)].into()), []);
        assert_eq!(ledger.put_aside(at(10), [].into()), [(PoolIx(0), dollars(1))]);
        assert_eq!(ledger.put_aside(at(20), [].into()), []);
        assert_eq!(ledger.today(), dollars(1));
    }
}
