//! The connection that keeps a builder's store paths from being collected, and the questions that are asked on it.
//!
//! Owns the order that makes an answer true for longer than a moment: a temp root first, then the question whether the
//! path is valid, and both in one round trip. Many builds ask at once: whoever gets the connection asks for everybody
//! who waits, so a question takes two round trips at the very most, however many there are. What the answers mean for
//! later questions is [`Presence`]'s.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::remote::{Daemon, Remote};
use crate::model::StorePath;
use crate::protocol::worker::operation::{AddTempRoot, QueryValidPaths};
use crate::protocol::worker::{ProtocolError, Substitute};
use crate::transfer::Presence;

/// From wanting to ask to the answer: behind others who ask, and on a fresh connection.
const ASK_LIMIT: Duration = Duration::from_secs(150);
/// Roots taken in one flight with the question; the rest go ahead of it, in as many round trips as they need.
const MAX_IN_FLIGHT: usize = 2048;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roots {
    /// Holds the temp roots of everything in `presence` for as long as it is open.
    daemon: tokio::sync::Mutex<Option<Daemon>>,
    waiting: Mutex<Vec<Question>>,
}

#[derive(Debug)]
struct Question {
    root: BTreeSet<StorePath>,
    ask: bool,
    answer: oneshot::Sender<Result<BTreeSet<StorePath>, SharedError>>,
}

/// Why there is no answer for anybody who asked at the same time.
#[derive(Clone, Debug)]
struct SharedError(Arc<anyhow::Error>);

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection for questions failed")
    }
}

impl std::error::Error for SharedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&**self.0)
    }
}

impl Roots {
    /// Takes temp roots for these paths, then asks which are valid: in this order nothing can be collected between the
    /// question and its use. Those that are not are the answer.
    pub(super) async fn missing(
        &self,
        paths: &BTreeSet<StorePath>,
        remote: &Remote,
    ) -> anyhow::Result<BTreeSet<StorePath>> {
        let valid = self.put(paths.clone(), true, remote).await?;
        Ok(paths.difference(&valid).cloned().collect())
    }

    /// Takes temp roots for paths that are about to be built.
    pub(super) async fn hold(&self, paths: BTreeSet<StorePath>, remote: &Remote) -> anyhow::Result<()> {
        self.put(paths, false, remote).await.map(drop)
    }

    /// Opens the connection ahead of the first question, if it can be.
    pub(super) async fn warm(&self, remote: &Remote) {
        let mut daemon = self.daemon.lock().await;
        forget_lost(&mut daemon, &remote.presence);
        if daemon.is_none() {
            *daemon = remote.fresh_daemon().await.ok();
        }
    }

    /// Notices a connection that was lost, unless somebody uses it, who then finds out.
    pub(super) fn look(&self, presence: &Presence) {
        if let Ok(mut daemon) = self.daemon.try_lock() {
            forget_lost(&mut daemon, presence);
        }
    }

    /// Nothing that was held or answered counts any more.
    pub(super) async fn reset(&self, presence: &Presence) {
        *self.daemon.lock().await = None;
        presence.forget();
    }

    async fn put(
        &self,
        root: BTreeSet<StorePath>,
        ask: bool,
        remote: &Remote,
    ) -> anyhow::Result<BTreeSet<StorePath>> {
        let (answer, mut answered) = oneshot::channel();
        self.waiting.lock().push(Question { root, ask, answer });
        let asked = async {
            let mut daemon = self.daemon.lock().await;
            // Whoever had the connection before has asked for everybody.
            if let Ok(answer) = answered.try_recv() {
                return Ok(answer?);
            }
            let questions = std::mem::take(&mut *self.waiting.lock());
            if let Err(error) = self.ask_all(&mut daemon, questions, remote).await {
                *daemon = None;
                remote.presence.forget();
                return Err(error);
            }
            drop(daemon);
            Ok(answered.await??)
        };
        let doing = || format!("ask builder {} which paths it has", remote.builder());
        match timeout(ASK_LIMIT, asked).await {
            Ok(answer) => answer.map_err(|error| error.context(doing())),
            // The connection was left in the middle of a question, and the next who asks replaces it.
            Err(_) => Err(anyhow!("there is no answer within {ASK_LIMIT:?}").context(doing())),
        }
    }

    async fn ask_all(
        &self,
        daemon: &mut Option<Daemon>,
        questions: Vec<Question>,
        remote: &Remote,
    ) -> anyhow::Result<()> {
        forget_lost(daemon, &remote.presence);
        let asked = async {
            let daemon = match daemon {
                Some(daemon) => daemon,
                empty => empty.insert(remote.fresh_daemon().await?),
            };
            let answered = ask(daemon, &questions).await;
            answered.map_err(|error| daemon.explain(anyhow::Error::new(error)))
        };
        match asked.await {
            Ok(valid) => {
                for question in questions {
                    let of_these = question.root.intersection(&valid).cloned().collect();
                    // A build that was cancelled does not wait for its answer.
                    let _gone = question.answer.send(Ok(of_these));
                }
                Ok(())
            }
            Err(error) => {
                let error = SharedError(Arc::new(error));
                for question in questions {
                    let _gone = question.answer.send(Err(error.clone()));
                }
                Err(error.into())
            }
        }
    }
}

/// All roots, then one question about all that is asked for.
async fn ask(daemon: &mut Daemon, questions: &[Question]) -> Result<BTreeSet<StorePath>, ProtocolError> {
    let connection = &mut daemon.connection;
    let roots: Vec<StorePath> = questions
        .iter()
        .flat_map(|question| &question.root)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .cloned()
        .collect();
    let asked: BTreeSet<StorePath> = questions
        .iter()
        .filter(|question| question.ask)
        .flat_map(|question| question.root.iter().cloned())
        .collect();
    let (ahead, with_it) = roots.split_at(roots.len().saturating_sub(MAX_IN_FLIGHT));
    connection.add_temp_roots(ahead).await?;
    for root in with_it {
        connection.send(&AddTempRoot(root))?;
    }
    let question = QueryValidPaths { paths: &asked, substitute: Substitute::No };
    if !asked.is_empty() {
        connection.send(&question)?;
    }
    for root in with_it {
        connection.receive(&AddTempRoot(root), &mut ()).await?;
    }
    if asked.is_empty() { Ok(asked) } else { connection.receive(&question, &mut ()).await }
}

/// Whatever a lost connection held may be collected from now on.
fn forget_lost(daemon: &mut Option<Daemon>, presence: &Presence) {
    if daemon.as_ref().is_some_and(|daemon| !daemon.is_usable()) {
        presence.forget();
        *daemon = None;
    }
}
