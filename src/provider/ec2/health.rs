//! What is asked of an instance itself, and what its answers mean for the builder: is it ready, is it what was bought,
//! will it stay.
//!
//! The texts and their reading are in [`super::boot`]; who asks, and when, is the broker.

use std::time::{Duration, SystemTime};

use super::boot::beat::{self, BeatOrder, Notice};
use super::boot::ready::{self, State};
use super::pool::Ec2;
use crate::catalog::missing_flags;
use crate::model::ec2::Market;
use crate::model::{BuilderFacts, InstanceId};
use crate::provider::{Beat, BuilderNotice, Readiness};

/// AWS advises to look for notices this often; there are two minutes after one.
const SPOT_BEAT: Duration = Duration::from_secs(5);
/// Many times within the shortest lease.
const BEAT: Duration = Duration::from_secs(20);
/// A flag list this long names the kind of processor; the rest adds nothing.
const SHOWN_FLAGS: usize = 6;

impl Ec2 {
    /// The command that asks how far the boot is. Port 22 being open says nothing.
    pub(in crate::provider) fn readiness(&self, instance: &InstanceId) -> Option<String> {
        self.class_of(instance).map(|_| ready::command())
    }

    pub(in crate::provider) fn read_readiness(&self, instance: &InstanceId, stdout: &[u8]) -> Readiness {
        tracing::debug!(%instance, pool = %self.name(), answer = %String::from_utf8_lossy(stdout), "readiness");
        let progress = match ready::parse(stdout) {
            Ok(progress) => progress,
            Err(error) => return Readiness::Failed { reason: error.to_string() },
        };
        match progress.state {
            State::Ready { .. } => Readiness::Ready,
            State::Failed(reason) => Readiness::Failed { reason },
            State::Ending(reason) => Readiness::Failed { reason: format!("it is powering off: {reason}") },
            State::Booting => Readiness::NotYet {
                phase: progress.phases.last().map_or_else(
                    || "its sshd answers, its set-up has not begun".to_owned(),
                    |phase| format!("{} after {} s of uptime", phase.name, phase.at.as_secs()),
                ),
            },
        }
    }

    /// A processor that cannot run what the pool promises would kill builds with SIGILL.
    pub(in crate::provider) fn objection(
        &self,
        instance: &InstanceId,
        facts: &BuilderFacts,
    ) -> Option<String> {
        let offer = self.offer();
        let flags = facts.cpu_flags.iter().map(String::as_str).collect();
        for feature in offer.features.union(&offer.mandatory) {
            let missing = missing_flags(feature, &flags);
            if !missing.is_empty() {
                let shown = missing.iter().take(SHOWN_FLAGS).copied().collect::<Vec<_>>().join(" ");
                let more = if missing.len() > SHOWN_FLAGS { ", ..." } else { "" };
                let class = self.class_of(instance);
                let what =
                    class.map_or_else(|| "its".to_owned(), |class| format!("{}'s", class.instance_type));
                return Some(format!(
                    "{what} processor cannot run code for `{feature}`: /proc/cpuinfo lacks {shown}{more}"
                ));
            }
        }
        None
    }

    /// The next heartbeat: renews the lease, and on spot asks for notices.
    pub(in crate::provider) fn beat(&self, instance: &InstanceId, is_in_use: bool) -> Option<Beat> {
        let spot = match self.class_of(instance)?.market {
            Market::OnDemand => false,
            Market::Spot => true,
        };
        let every = if spot { SPOT_BEAT } else { BEAT };
        Some(Beat { command: beat::command(BeatOrder { spot, in_use: is_in_use }), every })
    }

    pub(in crate::provider) fn read_beat(&self, instance: &InstanceId, stdout: &[u8]) -> Vec<BuilderNotice> {
        let beat = match beat::parse(stdout) {
            Ok(beat) => beat,
            Err(error) => {
                tracing::warn!(%instance, %error, "a heartbeat failed");
                return Vec::new();
            }
        };
        if beat.notices_unreadable {
            tracing::warn!(%instance, "spot notices cannot be read: an interruption would come unannounced");
        }
        let mut notices = Vec::new();
        notices
            .extend(self.estate.take_refusal(instance.as_str()).map(|why| BuilderNotice::Unguarded { why }));
        if let Some(reason) = beat.ending {
            notices.push(BuilderNotice::Ending { why: format!("it is powering off: {reason}") });
        }
        match beat.notice {
            None => {}
            Some(Notice::Rebalance) => notices.push(BuilderNotice::Rebalance {
                why: "EC2 recommends to rebalance: an interruption is likely".to_owned(),
            }),
            Some(Notice::Interruption { at }) => {
                self.interrupted(instance);
                notices.push(BuilderNotice::Interruption {
                    within: at.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default()),
                    why: "EC2 takes this spot instance back".to_owned(),
                });
            }
        }
        notices
    }
}
