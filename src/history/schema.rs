//! The form of the file: a list of steps, of which each file has taken the first few.

use rusqlite::Connection;

/// Each takes a file from the form of its index to the next. Never changed once released, only added to.
///
/// Moments are seconds since 1970, durations milliseconds, money micro-dollars, days as in `UtcDay`.
pub(super) const STEPS: &[&str] = &[
    "
    CREATE TABLE builds (
        id INTEGER PRIMARY KEY,
        ended INTEGER NOT NULL,
        build INTEGER NOT NULL,
        drv TEXT NOT NULL,
        name TEXT NOT NULL,
        system TEXT NOT NULL,
        features TEXT NOT NULL,
        pool TEXT,
        builder TEXT,
        instance TEXT,
        instance_type TEXT,
        market TEXT,
        waiting INTEGER NOT NULL,
        uploading INTEGER NOT NULL,
        building INTEGER NOT NULL,
        downloading INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        reason TEXT,
        cost INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX builds_by_end ON builds (ended);
    CREATE TABLE instances (
        id INTEGER PRIMARY KEY,
        instance TEXT NOT NULL,
        pool TEXT NOT NULL,
        builder TEXT NOT NULL,
        instance_type TEXT,
        market TEXT,
        zone TEXT,
        rate INTEGER,
        began INTEGER NOT NULL,
        seen INTEGER NOT NULL,
        ended INTEGER,
        cost INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX instances_by_name ON instances (instance);
    CREATE INDEX instances_by_sight ON instances (seen);
    CREATE TABLE put_aside (
        day INTEGER NOT NULL,
        pool TEXT NOT NULL,
        cost INTEGER NOT NULL,
        PRIMARY KEY (day, pool)
    ) STRICT;
",
    // Up to here `building` was over all attempts, which is the same where there was one.
    "
    ALTER TABLE builds ADD COLUMN took INTEGER;
    ALTER TABLE builds ADD COLUMN bytes_up INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE builds ADD COLUMN bytes_down INTEGER NOT NULL DEFAULT 0;
    UPDATE builds SET took = building WHERE attempts = 1;
",
    // Up to here what other builders sent was not counted.
    "
    ALTER TABLE builds ADD COLUMN bytes_direct INTEGER NOT NULL DEFAULT 0;
",
];

/// The latest form.
pub(super) fn latest() -> u32 {
    u32::try_from(STEPS.len()).unwrap_or(u32::MAX)
}

/// The form that a file has.
pub(super) fn found(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Takes the steps that a file has not taken, all or none.
pub(super) fn bring_up_to_date(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let found = found(&transaction)?;
    for step in STEPS.iter().skip(found as usize) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", latest())?;
    transaction.commit()
}
