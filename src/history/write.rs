//! Records into rows.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::HistoryError;
use super::store::{Store, seconds};
use crate::model::{BuildRecord, InstanceRecord, Outcome, PoolName, Record, Usd, UtcDay};

/// Between two looks for what is too old.
const PRUNE_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Two beginnings of one instance closer than this are one: an age is rounded on its way.
const SAME_BEGINNING: i64 = 300;
/// A reason is cut to so many characters.
const LONGEST_REASON: usize = 2_000;

impl Store {
    /// Writes all of these or none, each as of its moment since the beginning of 1970.
    pub(super) fn write(&mut self, records: &[(Duration, Record)]) -> Result<(), HistoryError> {
        let Some((now, _)) = records.last() else { return Ok(()) };
        let transaction = self.connection.transaction()?;
        for (at, record) in records {
            match record {
                Record::Build(build) => insert_build(&transaction, *at, build)?,
                Record::Instance(instance) => put_instance(&transaction, *at, instance)?,
                Record::PutAside { pool, cost } => add_aside(&transaction, *at, pool, *cost)?,
            }
        }
        transaction.commit()?;
        if now.saturating_sub(self.pruned) > PRUNE_INTERVAL {
            self.prune(*now)?;
        }
        Ok(())
    }
}

fn insert_build(connection: &Connection, at: Duration, build: &BuildRecord) -> rusqlite::Result<()> {
    let (outcome, reason) = match &build.outcome {
        Outcome::Succeeded => ("succeeded", None),
        Outcome::Failed(failure) => {
            ("failed", Some(failure.reason.chars().take(LONGEST_REASON).collect::<String>()))
        }
        Outcome::Cancelled => ("cancelled", None),
    };
    let features = build.requirement.features.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let place = build.place.as_ref();
    let instance = place.and_then(|place| place.instance.as_ref());
    let class = instance.and_then(|instance| instance.class.as_ref());
    let mut insert = connection.prepare(
        "INSERT INTO builds (ended, build, drv, name, system, features, pool, builder, instance, instance_type, market, \
         waiting, uploading, building, downloading, attempts, outcome, reason, cost, took, bytes_up, bytes_down, \
         bytes_direct) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)",
    )?;
    insert.execute(params![
        seconds(at),
        i64::try_from(build.build.0).unwrap_or(i64::MAX),
        build.drv.to_string(),
        build.drv.name(),
        build.requirement.system.as_str(),
        features,
        place.map(|place| place.pool.as_str()),
        place.map(|place| place.builder.to_string()),
        instance.map(|instance| instance.id.as_str()),
        class.map(|class| class.instance_type.as_str()),
        class.map(|class| class.market.name()),
        millis(build.phases.waiting),
        millis(build.phases.uploading),
        millis(build.phases.building),
        millis(build.phases.downloading),
        build.attempts,
        outcome,
        reason,
        micros(build.cost),
        build.took.map(millis),
        bytes(build.traffic.up),
        bytes(build.traffic.down),
        bytes(build.traffic.direct),
    ])?;
    Ok(())
}

fn put_instance(connection: &Connection, at: Duration, record: &InstanceRecord) -> rusqlite::Result<()> {
    let instance = &record.instance;
    let began = seconds(at.saturating_sub(record.age));
    let ended = record.has_ended.then(|| seconds(at));
    let known: Option<i64> = connection
        .prepare(
            "SELECT id FROM instances WHERE instance = ?1 AND (ended IS NULL OR abs(began - ?2) <= ?3) \
             ORDER BY began DESC LIMIT 1",
        )?
        .query_row(params![instance.id.as_str(), began, SAME_BEGINNING], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        let mut update =
            connection.prepare("UPDATE instances SET seen = ?2, ended = ?3, cost = ?4 WHERE id = ?1")?;
        update.execute(params![id, seconds(at), ended, micros(record.cost)])?;
        return Ok(());
    }
    let class = instance.class.as_ref();
    let mut insert = connection.prepare(
        "INSERT INTO instances (instance, pool, builder, instance_type, market, zone, rate, began, seen, ended, cost) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    insert.execute(params![
        instance.id.as_str(),
        instance.pool.as_str(),
        record.builder.to_string(),
        class.map(|class| class.instance_type.as_str()),
        class.map(|class| class.market.name()),
        class.map(|class| class.zone.as_str()),
        class.map(|class| micros(class.rate.0)),
        began,
        seconds(at),
        ended,
        micros(record.cost),
    ])?;
    Ok(())
}

fn add_aside(connection: &Connection, at: Duration, pool: &PoolName, cost: Usd) -> rusqlite::Result<()> {
    let mut add = connection.prepare(
        "INSERT INTO put_aside (day, pool, cost) VALUES (?1, ?2, ?3) \
         ON CONFLICT (day, pool) DO UPDATE SET cost = cost + excluded.cost",
    )?;
    add.execute(params![UtcDay::at(at).0, pool.as_str(), micros(cost)])?;
    Ok(())
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn micros(amount: Usd) -> i64 {
    i64::try_from(amount.micros()).unwrap_or(i64::MAX)
}

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
