//! Which logs can still be read: those of all live builds, and of the latest that have ended, within a bound.
//!
//! The bytes are in each build's `LogSpool`; who may read one is decided here, because it is known here who brought it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::build::Build;
use super::log_spool::LogSpool;
use crate::model::{BuildId, DrvPath};

/// Ended builds whose logs are kept: each is an open file.
const MAX_ENDED: usize = 200;
/// Bytes of them, on the disk of the state directory. Nix has them all (`nix log`); these are at hand only.
const MAX_ENDED_BYTES: u64 = 256 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    /// The oldest first.
    kept: Mutex<VecDeque<Arc<KeptLog>>>,
}

/// The log of one build.
#[derive(Debug)]
pub(crate) struct KeptLog {
    pub(crate) build: BuildId,
    pub(crate) drv: DrvPath,
    /// The user whose hook brought the build.
    brought_by: Option<u32>,
    pub(crate) log: Arc<LogSpool>,
}

impl KeptLog {
    /// Logs can carry what was secret, so this is stricter than the status: whoever brought the build, and those who may
    /// do everything. A build through nix-daemon was brought by root.
    pub(crate) fn may_be_read_by(&self, uid: Option<u32>) -> bool {
        uid.is_some() && uid == self.brought_by
    }

    fn is_on(&self) -> bool {
        self.log.outcome().is_none()
    }
}

impl Logs {
    /// From now on the log of this build can be read.
    pub(crate) fn keep(&self, build: &Build, brought_by: Option<u32>) {
        let mut kept = self.kept.lock();
        forget_oldest(&mut kept, MAX_ENDED, MAX_ENDED_BYTES);
        kept.push_back(Arc::new(KeptLog {
            build: build.id,
            drv: build.request.drv.clone(),
            brought_by,
            log: Arc::clone(&build.log),
        }));
    }

    /// The log that is meant by `#12`, by a path or name, or by a part of it: of several the one that is on, and of those
    /// the latest.
    pub(crate) fn find(&self, subject: &str) -> Option<Arc<KeptLog>> {
        let kept = self.kept.lock();
        if let Ok(id) = subject.parse::<BuildId>() {
            return kept.iter().find(|log| log.build == id).cloned();
        }
        let fit = |log: &KeptLog| {
            let path = log.drv.to_string();
            match (log.drv.name() == subject || path == subject, path.contains(subject)) {
                (true, _) => Some(1),
                (false, true) => Some(0),
                (false, false) => None,
            }
        };
        let candidates = kept.iter().filter_map(|log| Some(((fit(log)?, log.is_on(), log.build), log)));
        candidates.max_by_key(|(rank, _)| *rank).map(|(_, log)| Arc::clone(log))
    }
}

fn forget_oldest(kept: &mut VecDeque<Arc<KeptLog>>, most: usize, most_bytes: u64) {
    let (mut count, mut bytes) = (0, 0);
    for log in kept.iter().filter(|log| !log.is_on()) {
        count += 1;
        bytes += log.log.len();
    }
    kept.retain(|log| {
        let goes = !log.is_on() && (count >= most || bytes > most_bytes);
        if goes {
            count -= 1;
            bytes -= log.log.len();
        }
        !goes
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Outcome;

    fn log(build: u64, name: &str, size: usize, ended: bool) -> Arc<KeptLog> {
        let log = Arc::new(LogSpool::new(&std::env::temp_dir()));
        log.append(&vec![b'x'; size]).unwrap();
        if ended {
            log.close(Outcome::Succeeded);
        }
        let drv = DrvPath::parse(&format!("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-{name}.drv")).unwrap();
        Arc::new(KeptLog { build: BuildId(build), drv, brought_by: Some(1000), log })
    }

    #[test]
    fn a_log_is_found_by_number_by_name_and_by_part_of_it() {
        let logs = Logs::default();
        let kept = [
            log(1, "hello-2.12", 0, true),
            log(2, "hello-2.12", 0, false),
            log(3, "hello-2.12", 0, true),
            log(4, "hello-2.12-doc", 0, false),
        ];
        logs.kept.lock().extend(kept);
        let found = |subject: &str| logs.find(subject).map(|log| log.build.0);
        assert_eq!(found("#1"), Some(1));
        assert_eq!(found("3"), Some(3));
        assert_eq!(found("hello-2.12"), Some(2), "the one that is on, and not what only begins so");
        assert_eq!(found("doc"), Some(4));
        assert_eq!(found("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-hello-2.12-doc.drv"), Some(4));
        assert_eq!(found("#9"), None);
        assert_eq!(found("bash"), None);
    }

    #[test]
    fn logs_of_ended_builds_are_few_and_small_and_those_of_live_ones_stay() {
        let mut kept: VecDeque<_> =
            [log(1, "a", 500, false), log(2, "b", 60, true), log(3, "c", 30, true), log(4, "d", 10, true)]
                .into();
        forget_oldest(&mut kept, 10, 50);
        let ids = |kept: &VecDeque<Arc<KeptLog>>| kept.iter().map(|log| log.build.0).collect::<Vec<_>>();
        assert_eq!(ids(&kept), [1, 3, 4]);
        forget_oldest(&mut kept, 2, 50);
        assert_eq!(ids(&kept), [1, 4], "there is room for one more");
    }

    #[test]
    fn only_who_brought_a_build_reads_its_log() {
        let log = log(1, "a", 0, false);
        assert!(log.may_be_read_by(Some(1000)));
        assert!(!log.may_be_read_by(Some(1001)) && !log.may_be_read_by(None));
    }
}
