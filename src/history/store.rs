//! The file: opened, brought up to date, and kept within bounds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{HistoryError, schema};
use crate::model::{InstanceId, Spent};

/// The file's name in the state directory.
const NAME: &str = "history.sqlite";
/// How long anything is remembered.
const LONGEST: Duration = Duration::from_secs(90 * 24 * 3600);
/// Rows of a table at most.
const MOST_ROWS: u32 = 100_000;
/// Pages of 4 KiB at most: 100,000 builds take a tenth of it.
const MOST_PAGES: u32 = 256 * 1024;
/// How long a reader of our file (`sqlite3`, a backup) may keep us.
const PATIENCE: Duration = Duration::from_secs(2);

/// The file, used by one thread at a time.
#[derive(Debug)]
pub struct Store {
    pub(super) connection: Connection,
    /// When old rows were last looked for.
    pub(super) pruned: Duration,
}

impl Store {
    /// Opens the history of this state directory, or begins one. What is no database any more is put aside.
    pub fn open(state_dir: &Path) -> Result<Self, HistoryError> {
        let path = state_dir.join(NAME);
        match Self::open_file(&path) {
            Err(HistoryError::Open { source, .. }) if is_broken(&source) => {
                let aside = path.with_extension("broken");
                tracing::warn!(
                    path = %path.display(), aside = %aside.display(), error = %source,
                    "the history is damaged: it is put aside, and what was spent today and this month is forgotten"
                );
                // When it cannot even be put aside, the second attempt says what is wrong.
                let _still_there = std::fs::rename(&path, &aside);
                for suffix in ["-wal", "-shm"] {
                    let _was_none = std::fs::remove_file(with_suffix(&path, suffix));
                }
                Self::open_file(&path)
            }
            opened => opened,
        }
    }

    /// Opens the history of this state directory to read it, beside a broker that may be writing it. Nothing is made,
    /// changed or put aside.
    pub fn open_to_read(state_dir: &Path) -> Result<Self, HistoryError> {
        let path = state_dir.join(NAME);
        let failed = |source| HistoryError::Open { path: path.clone(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
        connection.busy_timeout(PATIENCE).map_err(failed)?;
        let (found, known) = (schema::found(&connection).map_err(failed)?, schema::latest());
        if found > known {
            return Err(HistoryError::Newer { path, found, known });
        }
        if found < known {
            return Err(HistoryError::Older { path, found, known });
        }
        Ok(Self { connection, pruned: Duration::ZERO })
    }

    fn open_file(path: &Path) -> Result<Self, HistoryError> {
        let failed = |source| HistoryError::Open { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(failed)?;
        prepare(&connection).map_err(failed)?;
        let (found, known) = (schema::found(&connection).map_err(failed)?, schema::latest());
        if found > known {
            return Err(HistoryError::Newer { path: path.to_owned(), found, known });
        }
        schema::bring_up_to_date(&mut connection).map_err(failed)?;
        Ok(Self { connection, pruned: Duration::ZERO })
    }

    /// The broker starts at this moment since the beginning of 1970, and found these instances alive: all others have
    /// ended, at the last moment at which they were seen. Answers what was spent.
    pub fn begin(&mut self, now: Duration, alive: &BTreeSet<InstanceId>) -> Result<Spent, HistoryError> {
        self.prune(now)?;
        let transaction = self.connection.transaction()?;
        {
            let mut open = transaction.prepare("SELECT id, instance FROM instances WHERE ended IS NULL")?;
            let open = open.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
            for row in open {
                let (id, instance) = row?;
                if !alive.contains(&InstanceId::new(instance)) {
                    transaction.execute("UPDATE instances SET ended = seen WHERE id = ?1", [id])?;
                }
            }
        }
        transaction.commit()?;
        self.spent(now)
    }

    /// Forgets what is too old or too much; a day has begun since it last did.
    pub(super) fn prune(&mut self, now: Duration) -> Result<(), HistoryError> {
        self.pruned = now;
        let oldest = seconds(now.saturating_sub(LONGEST));
        self.connection.execute("DELETE FROM builds WHERE ended < ?1", [oldest])?;
        self.connection.execute("DELETE FROM instances WHERE seen < ?1", [oldest])?;
        self.connection.execute("DELETE FROM put_aside WHERE day < ?1", [oldest / 86_400])?;
        for table in ["builds", "instances"] {
            let sql = format!(
                "DELETE FROM {table} WHERE id <= (SELECT id FROM {table} ORDER BY id DESC LIMIT 1 OFFSET ?1)"
            );
            self.connection.execute(&sql, [MOST_ROWS])?;
        }
        Ok(())
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A power cut may cost the last records, and never the file.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // Some of these pragmas answer with a row.
    connection.pragma_update_and_check(None, "max_page_count", MOST_PAGES, |_| Ok(()))
}

fn is_broken(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whole seconds as SQLite takes them.
pub(super) fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
