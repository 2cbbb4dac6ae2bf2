//! What is written down about every instance, before EC2 is asked for it and until EC2 says that it is gone.
//!
//! Owns the files: one for each intent, in a directory of the broker's own, complete or not at all, on disk before the
//! call that it announces. What follows from them is decided in [`super::reconcile`].
//!
//! ```text
//! STATE_DIR/ec2/
//!   broker-id            32 hexadecimal digits: the tag by which this broker knows its own
//!   regions              every region (with its profile) that was ever launched in: swept for ever
//!   intents/ID.json      one launch and what became of it; mode 0600, since user-data carries a host key
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::api::RunOrder;
use super::expiry::Expiry;
use crate::model::ec2::Market;
use crate::model::{HourlyRate, InstanceClass, Usd};
use crate::provider::random;

/// A record is some 20 KiB, for the user-data that it may carry; more than this is not one of ours.
const MAX_RECORD: u64 = 256 << 10;
/// More files than this in one directory are not ours either.
const MAX_RECORDS: usize = 10_000;

/// Names one launch: the value of the tag `nix-broker:intent`, and the file's name. Only hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct IntentId(String);

impl IntentId {
    /// A fresh one: 128 bits from the kernel.
    pub(super) fn fresh() -> io::Result<Self> {
        random::token().map(Self)
    }

    /// One that was written down, for tests.
    #[cfg(test)]
    pub(super) fn parse(text: &str) -> Option<Self> {
        is_hex(text).then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where one account is used: a profile (`None` is what every AWS tool would use) and a region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Site {
    pub(super) profile: Option<String>,
    pub(super) region: String,
}

/// One launch and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Record {
    pub(super) intent: IntentId,
    pub(super) pool: String,
    pub(super) site: Site,
    /// The host key that the instance was told to have, public half.
    pub(super) host_key: String,
    /// Seconds since 1970.
    pub(super) asked_at: u64,
    pub(super) stage: Stage,
    /// When AWS is to end the instance by itself, where that is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expiry: Option<Expiry>,
}

/// How far it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub(super) enum Stage {
    /// RunInstances may have been called with exactly this.
    Asked {
        /// The request.
        order: Box<RunOrder>,
        /// What it would be.
        class: ClassRecord,
    },
    /// The same, and nobody wants it any more: whatever comes of it is terminated.
    Abandoned,
    /// The instance exists.
    Live {
        /// Its id.
        instance: String,
        /// What it is.
        class: ClassRecord,
    },
    /// Put aside: stopped, or about to be.
    Shelved {
        /// Its id.
        instance: String,
        /// What it is.
        class: ClassRecord,
        /// Since when, in seconds since 1970.
        since: u64,
        /// Terminated then, in seconds since 1970.
        until: u64,
    },
    /// It must end.
    Ending {
        /// Its id.
        instance: String,
        /// Since when, in seconds since 1970.
        since: u64,
    },
}

/// An [`InstanceClass`] as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ClassRecord {
    pub(super) instance_type: String,
    pub(super) spot: bool,
    pub(super) zone: String,
    /// Micro-dollars per hour.
    pub(super) rate: u64,
    /// Micro-dollars per hour.
    pub(super) stopped_rate: u64,
}

impl From<&InstanceClass> for ClassRecord {
    fn from(class: &InstanceClass) -> Self {
        Self {
            instance_type: class.instance_type.clone(),
            spot: class.market == Market::Spot,
            zone: class.zone.clone(),
            rate: class.rate.0.micros(),
            stopped_rate: class.stopped_rate.0.micros(),
        }
    }
}

impl From<&ClassRecord> for InstanceClass {
    fn from(record: &ClassRecord) -> Self {
        Self {
            instance_type: record.instance_type.clone(),
            market: if record.spot { Market::Spot } else { Market::OnDemand },
            zone: record.zone.clone(),
            rate: HourlyRate(Usd::from_micros(record.rate)),
            stopped_rate: HourlyRate(Usd::from_micros(record.stopped_rate)),
        }
    }
}

impl Record {
    /// The instance, once its id is known.
    pub(super) fn instance(&self) -> Option<&str> {
        match &self.stage {
            Stage::Asked { .. } | Stage::Abandoned => None,
            Stage::Live { instance, .. }
            | Stage::Shelved { instance, .. }
            | Stage::Ending { instance, .. } => Some(instance),
        }
    }
}

/// The records, in memory and on disk.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    broker: String,
    known: BTreeMap<IntentId, Record>,
    sites: BTreeSet<Site>,
}

/// What a start found that it could not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) path: PathBuf,
    pub(super) reason: String,
}

impl Records {
    /// Reads what there is; a directory that does not exist yet is an empty one.
    ///
    /// A file that cannot be read is reported and left alone: the instance behind it, if there is one, carries our tag,
    /// and an instance of ours without a record is terminated.
    pub(super) fn open(state_dir: &Path) -> io::Result<(Self, Vec<Unreadable>)> {
        let directory = state_dir.join("ec2");
        let intents = directory.join("intents");
        fs::create_dir_all(&intents)?;
        let broker = broker_id(&directory)?;
        let sites = match read_bounded(&directory.join("regions")) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error),
        };
        let (mut known, mut unreadable) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(&intents)?.take(MAX_RECORDS) {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // What was being written when an earlier broker died.
                fs::remove_file(&path)?;
                continue;
            }
            let read = read_bounded(&path)
                .map_err(|error| error.to_string())
                .and_then(|text| serde_json::from_slice::<Record>(&text).map_err(|error| error.to_string()));
            match read {
                Ok(record) => drop(known.insert(record.intent.clone(), record)),
                Err(reason) => unreadable.push(Unreadable { path, reason }),
            }
        }
        Ok((Self { directory, broker, known, sites }, unreadable))
    }

    /// The value of the tag `nix-broker:broker`.
    pub(super) fn broker(&self) -> &str {
        &self.broker
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.known.values()
    }

    pub(super) fn get(&self, intent: &IntentId) -> Option<&Record> {
        self.known.get(intent)
    }

    /// The record of this instance.
    pub(super) fn of_instance(&self, id: &str) -> Option<&Record> {
        self.known.values().find(|record| record.instance() == Some(id))
    }

    /// Every site that was ever launched in.
    pub(super) fn sites(&self) -> &BTreeSet<Site> {
        &self.sites
    }

    /// Writes a record down; when this returns, it survives a loss of power.
    pub(super) fn put(&mut self, record: Record) -> io::Result<()> {
        if !self.sites.contains(&record.site) {
            let mut sites = self.sites.clone();
            sites.insert(record.site.clone());
            let text = serde_json::to_vec(&sites).map_err(io::Error::other)?;
            write_whole(&self.directory, "regions", &text)?;
            self.sites = sites;
        }
        let text = serde_json::to_vec(&record).map_err(io::Error::other)?;
        write_whole(&self.directory.join("intents"), &file_name(&record.intent), &text)?;
        self.known.insert(record.intent.clone(), record);
        Ok(())
    }

    /// Puts a record into another stage; `expiry` is what that means for its end, if anything. In memory it is there even
    /// when it cannot be written: an older stage on disk makes the next start look again, which does no harm.
    pub(super) fn advance(
        &mut self,
        intent: &IntentId,
        stage: Stage,
        expiry: Option<Expiry>,
    ) -> io::Result<()> {
        let Some(record) = self.known.get_mut(intent) else { return Ok(()) };
        record.stage = stage;
        record.expiry = expiry.or(record.expiry);
        let record = record.clone();
        self.put(record)
    }

    /// Writes down what AWS knows, or shall.
    pub(super) fn set_expiry(&mut self, intent: &IntentId, expiry: Option<Expiry>) -> io::Result<()> {
        let Some(record) = self.known.get_mut(intent).filter(|record| record.expiry != expiry) else {
            return Ok(());
        };
        record.expiry = expiry;
        let record = record.clone();
        self.put(record)
    }

    /// Nothing is left of it.
    pub(super) fn forget(&mut self, intent: &IntentId) -> io::Result<()> {
        self.known.remove(intent);
        match fs::remove_file(self.directory.join("intents").join(file_name(intent))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

fn file_name(intent: &IntentId) -> String {
    format!("{}.json", intent.as_str())
}

/// The id of the broker with this directory, made at its first start.
fn broker_id(directory: &Path) -> io::Result<String> {
    match read_bounded(&directory.join("broker-id")) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text).trim().to_owned();
            let path = directory.join("broker-id");
            if is_hex(&text) {
                Ok(text)
            } else {
                Err(io::Error::other(format!("`{}` does not hold an id of ours", path.display())))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = random::token()?;
            write_whole(directory, "broker-id", id.as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

fn is_hex(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_RECORD + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_RECORD {
        return Err(io::Error::other("larger than any record"));
    }
    Ok(text)
}

/// Complete or not at all, and on disk when this returns.
fn write_whole(directory: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.new"));
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(intent: &IntentId, stage: Stage) -> Record {
        Record {
            intent: intent.clone(),
            pool: "zen3".into(),
            site: Site { profile: Some("work".into()), region: "eu-central-1".into() },
            host_key: "ssh-ed25519 AAAA".into(),
            asked_at: 7,
            stage,
            expiry: None,
        }
    }

    #[test]
    fn what_was_put_is_there_after_a_restart_until_it_is_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let (mut records, unreadable) = Records::open(state.path()).unwrap();
        assert_eq!(unreadable, []);
        let broker = records.broker().to_owned();
        let intent = IntentId::fresh().unwrap();
        records.put(record(&intent, Stage::Abandoned)).unwrap();
        let ending = Stage::Ending { instance: "i-1".into(), since: 9 };
        let set = Some(Expiry::Set { at: 7 });
        records.advance(&intent, Stage::Abandoned, set).unwrap();
        // Another stage that means nothing for it leaves it as it was.
        records.advance(&intent, ending.clone(), None).unwrap();

        let (mut again, _) = Records::open(state.path()).unwrap();
        assert_eq!(again.broker(), broker);
        let expected = Record { expiry: set, ..record(&intent, ending) };
        assert_eq!(again.iter().cloned().collect::<Vec<_>>(), [expected]);
        again.set_expiry(&intent, None).unwrap();
        let (mut again, _) = Records::open(state.path()).unwrap();
        assert_eq!(again.get(&intent).and_then(|record| record.expiry), None);
        assert_eq!(again.of_instance("i-1").map(|record| &record.intent), Some(&intent));
        again.forget(&intent).unwrap();
        again.forget(&intent).unwrap();

        let (last, _) = Records::open(state.path()).unwrap();
        assert_eq!(last.iter().count(), 0);
        // Where something was launched once is looked at for ever.
        assert_eq!(last.sites().len(), 1);
    }

    #[test]
    fn what_was_half_written_is_dropped_and_what_is_broken_is_reported_and_kept() {
        let state = tempfile::tempdir().unwrap();
        drop(Records::open(state.path()).unwrap());
        let intents = state.path().join("ec2/intents");
        fs::write(intents.join("a.json.new"), "{").unwrap();
        fs::write(intents.join("b.json"), "{\"intent\":").unwrap();
        fs::write(intents.join("c.json"), vec![b' '; MAX_RECORD as usize + 1]).unwrap();
        let (records, mut unreadable) = Records::open(state.path()).unwrap();
        assert_eq!(records.iter().count(), 0);
        unreadable.sort_by(|left, right| left.path.cmp(&right.path));
        let names: Vec<_> = unreadable.iter().map(|file| file.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["b.json", "c.json"]);
        assert!(intents.join("b.json").exists() && !intents.join("a.json.new").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_written_refuses_the_launch() {
        let state = tempfile::tempdir().unwrap();
        let (mut records, _) = Records::open(state.path()).unwrap();
        fs::remove_dir_all(state.path()).unwrap();
        let intent = IntentId::fresh().unwrap();
        assert!(records.put(record(&intent, Stage::Abandoned)).is_err());
        assert!(records.get(&intent).is_none());
    }

    #[test]
    fn records_are_for_the_broker_alone() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let (mut records, _) = Records::open(state.path()).unwrap();
        let intent = IntentId::fresh().unwrap();
        records.put(record(&intent, Stage::Abandoned)).unwrap();
        let path = state.path().join("ec2/intents").join(file_name(&intent));
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_id_that_is_none_is_refused() {
        let state = tempfile::tempdir().unwrap();
        drop(Records::open(state.path()).unwrap());
        fs::write(state.path().join("ec2/broker-id"), "../../etc").unwrap();
        let error = Records::open(state.path()).unwrap_err();
        assert!(error.to_string().contains("does not hold an id of ours"), "{error}");
    }
}
