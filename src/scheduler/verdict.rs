//! The verdict on a request, from a small immutable snapshot: no lock, no loop, no clock.

use std::collections::BTreeSet;
use std::time::Duration;

use super::economics::reason_to_decline;
use super::pool::Pool;
use crate::model::{BuildRequest, DeclineRule, Offer, PoolName};

/// What the pools offer at one moment; made by [`Fleet::offers`](super::Fleet::offers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offers {
    /// Whether new builds are accepted.
    pub accepting: bool,
    /// In the order of the configuration.
    pub pools: Vec<PoolOffer>,
}

/// What one pool offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOffer {
    /// Its name.
    pub name: PoolName,
    /// What its builders can build, as far as is known.
    pub offer: Offer,
    /// Why no build can be trusted to it now, although its offer may fit.
    pub unfit: Option<String>,
    /// The cap that keeps it from launching, although its offer may fit.
    pub capped: Option<String>,
    /// What it leaves to this machine.
    pub declines: BTreeSet<DeclineRule>,
    /// Whether a builder is ready, or on its way.
    pub is_up: bool,
    /// How long a builder takes that has to be launched.
    pub launch: Duration,
}

/// What to reply to a request. The driver makes the model's `Verdict` of it, with a fresh build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The first pool that fits.
    Accept {
        /// What Nix shows as the machine.
        pool: PoolName,
    },
    /// Nix builds it locally, or says that it cannot.
    Decline {
        /// Per pool, why not.
        why: String,
    },
    /// Nix asks again in a few seconds.
    Postpone {
        /// What is waited for.
        why: String,
    },
}

impl Offers {
    pub(super) fn of(accepting: bool, pools: impl Iterator<Item = PoolOffer>) -> Self {
        Self { accepting, pools: pools.collect() }
    }

    /// The answer to this request.
    ///
    /// A pool whose launches fail is still accepted for: the build waits a bounded time, and then fails with the
    /// provider's own words, which help more than the "a machine with these features is required" of a Nix that was
    /// declined. `am_willing` says nothing about whether this machine *can* build it, so it is no reason to decline by
    /// itself; what is left to this machine is decided last.
    pub fn answer(&self, request: &BuildRequest) -> Answer {
        let mut misfits = Vec::with_capacity(self.pools.len());
        let mut capped = Vec::new();
        let mut fitting = Vec::new();
        for pool in &self.pools {
            match pool.offer.satisfies(&request.requirement) {
                Ok(()) => match (&pool.unfit, &pool.capped) {
                    (None, _) if !self.accepting => return shutting_down(request),
                    (None, None) => fitting.push(pool),
                    (None, Some(cap)) => capped.push((pool, format!("pool `{}`: {cap}", pool.name))),
                    (Some(unfit), _) => misfits.push(format!("pool `{}` is unfit: {unfit}", pool.name)),
                },
                Err(misfit) => misfits.push(format!("pool `{}` {misfit}", pool.name)),
            }
        }
        if let Some(why) = reason_to_decline(request, &fitting) {
            return Answer::Decline { why };
        }
        if let Some(first) = fitting.first() {
            return Answer::Accept { pool: first.name.clone() };
        }
        if let Some((first, _)) = capped.first() {
            let why = capped.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>().join("; ");
            return over_the_cap(request, first, why);
        }
        let why = if misfits.is_empty() { "no pool is configured".to_owned() } else { misfits.join("; ") };
        Answer::Decline { why }
    }
}

/// The answer to a request that only pools could take which may cost no more.
///
/// Where this machine can build it, it does: now, or when it has a job free. Where it cannot, a decline would end in Nix's
/// own "a machine with these features is required", which says nothing of money: it is accepted, to wait for what is left
/// of the hour, or to fail with the sentence that names the cap.
fn over_the_cap(request: &BuildRequest, first: &PoolOffer, why: String) -> Answer {
    match (request.settings.only_remote, request.am_willing) {
        (true, _) => Answer::Accept { pool: first.name.clone() },
        (false, true) => Answer::Decline { why },
        (false, false) => Answer::Postpone { why },
    }
}

/// The answer while the broker ends, to a request that it could otherwise take.
///
/// A Nix that can start the build now is declined: nothing is won by waiting. To another a decline may be the end
/// ("a `aarch64-linux` is required"), though a broker that is restarted for an upgrade is back in seconds: it is asked
/// to come again. That cannot go on for ever, because the hook of a broker that is gone declines by itself.
fn shutting_down(request: &BuildRequest) -> Answer {
    let why = "the broker is shutting down".to_owned();
    let starts_here = request.am_willing && !request.settings.only_remote;
    if starts_here { Answer::Decline { why } } else { Answer::Postpone { why } }
}

impl PoolOffer {
    /// `has_builder`: whether a ready builder proves that the pool is not unfit.
    pub(super) fn of(pool: &Pool, has_builder: bool) -> Self {
        let unfit = if has_builder { None } else { pool.unfit().map(str::to_owned) };
        Self {
            name: pool.spec.name.clone(),
            offer: pool.offer.clone(),
            unfit,
            capped: None,
            declines: pool.spec.declines.clone(),
            is_up: has_builder,
            launch: pool.launch_takes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DrvPath, Feature, Requirement, System};

    fn offers() -> Offers {
        let pool = |name: &str, system: &str, features: &[&str]| PoolOffer {
            name: PoolName::new(name),
            offer: Offer {
                systems: [System::new(system)].into(),
                features: features.iter().map(|&feature| Feature::new(feature)).collect(),
                mandatory: [].into(),
            },
            unfit: None,
            capped: None,
            declines: [].into(),
            is_up: false,
            launch: Duration::from_secs(75),
        };
        Offers {
            accepting: true,
            pools: vec![pool("x86", "x86_64-linux", &["kvm"]), pool("arm", "aarch64-linux", &[])],
        }
    }

    fn request(system: &str, features: &[&str]) -> BuildRequest {
        let drv = DrvPath::parse("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-a.drv").unwrap();
        let features = features.iter().map(|&feature| Feature::new(feature)).collect();
        let requirement = Requirement::new(System::new(system), features);
        BuildRequest { am_willing: true, ..BuildRequest::new(drv, requirement) }
    }

    #[test]
    fn the_first_pool_that_fits_is_named() {
        assert_eq!(
            offers().answer(&request("aarch64-linux", &[])),
            Answer::Accept { pool: PoolName::new("arm") }
        );
        assert_eq!(offers().answer(&request("builtin", &[])), Answer::Accept { pool: PoolName::new("x86") });
    }

    #[test]
    fn a_decline_names_every_pool_and_its_reason() {
        let Answer::Decline { why } = offers().answer(&request("aarch64-linux", &["kvm"])) else {
            panic!("was not declined");
        };
        assert_eq!(why, "pool `x86` does not build for `aarch64-linux`; pool `arm` lacks `kvm`");
    }

    #[test]
    fn an_unfit_pool_is_declined_for_with_what_is_wrong() {
        let mut offers = offers();
        offers.pools[0].unfit = Some("its Nix lacks `kvm` in `system-features`".to_owned());
        let Answer::Decline { why } = offers.answer(&request("x86_64-linux", &["kvm"])) else {
            panic!("was not declined");
        };
        assert!(why.starts_with("pool `x86` is unfit: its Nix lacks `kvm`"), "{why}");
    }

    #[test]
    fn a_capped_pool_is_built_around_where_that_is_possible() {
        let mut offers = offers();
        offers.pools[0].capped = Some("the cap of $1.00 a day is reached".to_owned());
        let why = "pool `x86`: the cap of $1.00 a day is reached".to_owned();
        let mut asked = request("x86_64-linux", &["kvm"]);
        assert_eq!(offers.answer(&asked), Answer::Decline { why: why.clone() });
        asked.am_willing = false;
        assert_eq!(offers.answer(&asked), Answer::Postpone { why });
        // What fits elsewhere goes elsewhere, and what fits nowhere else is told why it fails.
        asked.settings.only_remote = true;
        assert_eq!(offers.answer(&asked), Answer::Accept { pool: PoolName::new("x86") });
        let anywhere = request("builtin", &[]);
        assert_eq!(offers.answer(&anywhere), Answer::Accept { pool: PoolName::new("arm") });
    }

    #[test]
    fn while_shutting_down_only_a_nix_that_cannot_build_now_is_asked_to_wait() {
        let mut offers = offers();
        offers.accepting = false;
        let mut asked = request("x86_64-linux", &[]);
        assert!(matches!(offers.answer(&asked), Answer::Decline { .. }));
        asked.settings.only_remote = true;
        assert!(matches!(offers.answer(&asked), Answer::Postpone { .. }), "a job free is of no use to it");
        asked.settings.only_remote = false;
        asked.am_willing = false;
        assert!(matches!(offers.answer(&asked), Answer::Postpone { .. }));
        let mut hopeless = request("riscv64-linux", &[]);
        hopeless.am_willing = false;
        assert!(matches!(offers.answer(&hopeless), Answer::Decline { .. }));
    }
}
