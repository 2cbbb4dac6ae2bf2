//! Rows into answers: what was spent, on what, and what was built.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::{Row, params};

use super::HistoryError;
use super::store::{Store, seconds};
use crate::model::requirement::BIG_PARALLEL;
use crate::model::{HourlyRate, PoolName, Spent, Usd, UtcDay};

/// How far back the answers about costs go, but for those about pools, which are about this month.
const DAYS: u32 = 31;
/// The least that EC2 bills.
const SHORTEST_BILL: u64 = 60;

/// What costs are added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Days in UTC, the latest first.
    Day,
    /// Pools, this month.
    Pool,
    /// Instances, the latest first.
    Builder,
    /// Derivations by name, the dearest first.
    Build,
}

/// One line of a bill.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CostRow {
    /// The day, the pool, the instance, the derivation's name.
    pub name: String,
    /// Where, unless it is the name or several.
    pub pool: Option<String>,
    /// What was bought, for an instance.
    pub instance_type: Option<String>,
    /// How it was bought, for an instance.
    pub market: Option<String>,
    /// Instances, or builds.
    pub count: u64,
    /// For how long in all.
    pub time: Duration,
    /// What it cost.
    pub cost: Usd,
}

/// A build that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRow {
    /// Its place in the file.
    pub row: u64,
    /// When, since the beginning of 1970.
    pub ended: Duration,
    /// Its number in that run of the broker.
    pub build: u64,
    /// Full path of the derivation.
    pub drv: String,
    /// Its name.
    pub name: String,
    /// Its system.
    pub system: String,
    /// What it required.
    pub features: Vec<String>,
    /// The pool it ran in last.
    pub pool: Option<String>,
    /// The builder.
    pub builder: Option<String>,
    /// The provider's name for its instance.
    pub instance: Option<String>,
    /// What that was.
    pub instance_type: Option<String>,
    /// How it was bought.
    pub market: Option<String>,
    /// Without a slot.
    pub waiting: Duration,
    /// Inputs to the builder.
    pub uploading: Duration,
    /// On the builder.
    pub building: Duration,
    /// Outputs from the builder.
    pub downloading: Duration,
    /// On the builder, in the last attempt; nothing when that was never reached.
    pub took: Option<Duration>,
    /// Bytes to the builder from here.
    pub bytes_up: u64,
    /// Bytes to the builder from other builders.
    pub bytes_direct: u64,
    /// Bytes from the builder.
    pub bytes_down: u64,
    /// Attempts.
    pub attempts: u32,
    /// `succeeded`, `failed` or `cancelled`.
    pub outcome: String,
    /// Why it failed.
    pub reason: Option<String>,
    /// Its share of what its builders cost.
    pub cost: Usd,
}

/// How long a build took that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurationRow {
    /// The derivation's name.
    pub name: String,
    /// Its system.
    pub system: String,
    /// Whether it required `big-parallel`.
    pub is_big: bool,
    /// On the builder, in the attempt that ended well.
    pub took: Duration,
}

/// An instance that cost something.
struct Paid {
    name: String,
    pool: String,
    instance_type: Option<String>,
    market: Option<String>,
    rate: HourlyRate,
    began: u64,
    until: u64,
}

impl Paid {
    /// How long of it lies between these moments, and what that cost.
    fn within(&self, from: u64, to: u64) -> (Duration, Usd) {
        let time = Duration::from_secs(self.until.min(to).saturating_sub(self.began.max(from)));
        (time, self.rate.over(time))
    }
}

impl Store {
    /// What was spent until this moment since the beginning of 1970.
    pub(super) fn spent(&self, now: Duration) -> Result<Spent, HistoryError> {
        let day = UtcDay::at(now);
        let (today, month, to) = (day.begins(), day.month().begins(), day.next().begins());
        let mut spent = Spent { day, ..Spent::default() };
        for paid in self.paid(now, month)? {
            spent.month += paid.within(month, to).1;
            let (time, cost) = paid.within(today, to);
            if !time.is_zero() {
                *spent.today.entry(PoolName::new(paid.pool)).or_default() += cost;
            }
        }
        for (of, pool, cost) in self.aside(day.month())? {
            spent.month += cost;
            if of == day {
                *spent.today.entry(PoolName::new(pool)).or_default() += cost;
            }
        }
        Ok(spent)
    }

    /// The bill, as of this moment since the beginning of 1970.
    pub fn costs(&self, now: Duration, by: By) -> Result<Vec<CostRow>, HistoryError> {
        let today = UtcDay::at(now);
        let first = UtcDay(today.0.saturating_sub(DAYS - 1));
        match by {
            By::Day => self.costs_by_day(now, first, today),
            By::Pool => self.costs_by_pool(now, today),
            By::Builder => {
                let mut paid = self.paid(now, first.begins())?;
                paid.sort_by_key(|paid| std::cmp::Reverse(paid.began));
                let rows = paid.into_iter().take(MOST_LINES).map(|paid| {
                    let (time, cost) = paid.within(0, u64::MAX);
                    CostRow {
                        name: paid.name,
                        pool: Some(paid.pool),
                        instance_type: paid.instance_type,
                        market: paid.market,
                        count: 1,
                        time,
                        cost,
                    }
                });
                Ok(rows.collect())
            }
            By::Build => self.costs_by_build(first),
        }
    }

    fn costs_by_day(
        &self,
        now: Duration,
        first: UtcDay,
        today: UtcDay,
    ) -> Result<Vec<CostRow>, HistoryError> {
        let paid = self.paid(now, first.begins())?;
        let aside = self.aside(first)?;
        let mut rows = Vec::new();
        for day in (first.0..=today.0).rev().map(UtcDay) {
            let mut row = CostRow { name: day.to_string(), ..CostRow::default() };
            for paid in &paid {
                row.add(paid.within(day.begins(), day.next().begins()));
            }
            row.cost += aside.iter().filter(|(of, ..)| *of == day).map(|(.., cost)| *cost).sum();
            if row.cost != Usd::ZERO {
                rows.push(row);
            }
        }
        Ok(rows)
    }

    fn costs_by_pool(&self, now: Duration, today: UtcDay) -> Result<Vec<CostRow>, HistoryError> {
        let month = today.month();
        let mut pools: BTreeMap<String, CostRow> = BTreeMap::new();
        let mut row = |name: String, time_and_cost| {
            let row = CostRow { name: name.clone(), ..CostRow::default() };
            pools.entry(name).or_insert(row).add(time_and_cost);
        };
        for paid in self.paid(now, month.begins())? {
            row(paid.pool.clone(), paid.within(month.begins(), u64::MAX));
        }
        for (_, pool, cost) in self.aside(month)? {
            row(pool, (Duration::ZERO, cost));
        }
        let mut rows: Vec<_> = pools.into_values().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.cost));
        Ok(rows)
    }

    fn costs_by_build(&self, first: UtcDay) -> Result<Vec<CostRow>, HistoryError> {
        let mut select = self.connection.prepare(
            "SELECT name, CASE WHEN min(pool) = max(pool) THEN min(pool) END, count(*), \
             sum(uploading + building + downloading), sum(cost) AS cost \
             FROM builds WHERE ended >= ?1 AND cost > 0 GROUP BY name ORDER BY cost DESC LIMIT ?2",
        )?;
        let rows = select.query_map(params![begins(first), lines()], |row| {
            Ok(CostRow {
                name: row.get(0)?,
                pool: row.get(1)?,
                count: whole(row, 2)?,
                time: Duration::from_millis(whole(row, 3)?),
                cost: Usd::from_micros(whole(row, 4)?),
                ..CostRow::default()
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The builds that ended last, the very last first; with `before`, of those before that row.
    pub fn builds(&self, most: u32, before: Option<u64>) -> Result<Vec<BuildRow>, HistoryError> {
        let mut select = self.connection.prepare(
            "SELECT ended, build, drv, name, system, features, pool, builder, instance, instance_type, market, \
             waiting, uploading, building, downloading, attempts, outcome, reason, cost, took, bytes_up, bytes_down, id, \
             bytes_direct \
             FROM builds WHERE id < ?2 ORDER BY id DESC LIMIT ?1",
        )?;
        let before = before.and_then(|row| i64::try_from(row).ok()).unwrap_or(i64::MAX);
        let rows = select.query_map(params![most, before], |row| {
            let millis = |column| whole(row, column).map(Duration::from_millis);
            let features: String = row.get(5)?;
            Ok(BuildRow {
                ended: Duration::from_secs(whole(row, 0)?),
                build: whole(row, 1)?,
                drv: row.get(2)?,
                name: row.get(3)?,
                system: row.get(4)?,
                features: features.split_whitespace().map(str::to_owned).collect(),
                pool: row.get(6)?,
                builder: row.get(7)?,
                instance: row.get(8)?,
                instance_type: row.get(9)?,
                market: row.get(10)?,
                waiting: millis(11)?,
                uploading: millis(12)?,
                building: millis(13)?,
                downloading: millis(14)?,
                attempts: row.get(15)?,
                outcome: row.get(16)?,
                reason: row.get(17)?,
                cost: Usd::from_micros(whole(row, 18)?),
                took: row.get::<_, Option<i64>>(19)?.map(|_| millis(19)).transpose()?,
                bytes_up: whole(row, 20)?,
                bytes_down: whole(row, 21)?,
                row: whole(row, 22)?,
                bytes_direct: whole(row, 23)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How long the builds took that ended well, in the order in which they ended.
    pub fn durations(&self) -> Result<Vec<DurationRow>, HistoryError> {
        let mut select = self.connection.prepare(
            "SELECT name, system, features, took FROM builds \
             WHERE outcome = 'succeeded' AND took IS NOT NULL ORDER BY id",
        )?;
        let rows = select.query_map([], |row| {
            let features: String = row.get(2)?;
            Ok(DurationRow {
                name: row.get(0)?,
                system: row.get(1)?,
                is_big: features.split_whitespace().any(|feature| feature == BIG_PARALLEL),
                took: Duration::from_millis(whole(row, 3)?),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The instances that cost something after `from`, which is in seconds since 1970.
    fn paid(&self, now: Duration, from: u64) -> Result<Vec<Paid>, HistoryError> {
        let mut select = self.connection.prepare(
            "SELECT instance, pool, instance_type, market, rate, began, coalesce(ended, ?1) FROM instances \
             WHERE rate IS NOT NULL AND coalesce(ended, ?1) >= ?2",
        )?;
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        let rows = select.query_map(params![seconds(now), from], |row| {
            let began = whole(row, 5)?;
            Ok(Paid {
                name: row.get(0)?,
                pool: row.get(1)?,
                instance_type: row.get(2)?,
                market: row.get(3)?,
                rate: HourlyRate(Usd::from_micros(whole(row, 4)?)),
                began,
                until: whole(row, 6)?.max(began + SHORTEST_BILL),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What stopped instances cost, by day and pool.
    fn aside(&self, first: UtcDay) -> Result<Vec<(UtcDay, String, Usd)>, HistoryError> {
        let mut select = self.connection.prepare("SELECT day, pool, cost FROM put_aside WHERE day >= ?1")?;
        let rows = select.query_map([first.0], |row| {
            Ok((UtcDay(row.get(0)?), row.get(1)?, Usd::from_micros(whole(row, 2)?)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Lines of a bill at most: what a person reads.
const MOST_LINES: usize = 200;

fn lines() -> i64 {
    i64::try_from(MOST_LINES).unwrap_or(i64::MAX)
}

fn begins(day: UtcDay) -> i64 {
    i64::try_from(day.begins()).unwrap_or(i64::MAX)
}

impl CostRow {
    /// One instance more.
    fn add(&mut self, (time, cost): (Duration, Usd)) {
        self.count += u64::from(!time.is_zero());
        self.time += time;
        self.cost += cost;
    }
}

/// A number that was written as not negative, and may have been changed by anybody.
fn whole(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}
