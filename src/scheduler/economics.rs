//! What is left to this machine although a pool could build it: what costs less there, or takes less time.
//!
//! Only while this machine surely can and has a job free: a decline to a Nix that cannot build it is the end of the build,
//! and one to a Nix that is busy makes it wait. A build that inherits a processor is never left to it, because nobody has
//! looked which one this machine has. Each rule can be turned off for a pool, and one that any pool that fits has turned off
//! does not count: that pool wants the build.

use std::time::Duration;

use super::verdict::PoolOffer;
use crate::model::prediction::Rough;
use crate::model::{BuildRequest, DeclineRule, Prediction};

/// What ends in this time on a builder is tiny: connecting and sending takes as long.
const TINY: Duration = Duration::from_secs(3);
/// How much slower than a builder this machine may be.
const SLOWER_HERE: u32 = 2;

/// Why this request is left to this machine, if it is. `fitting` are the pools that could take it.
pub(super) fn reason_to_decline(request: &BuildRequest, fitting: &[&PoolOffer]) -> Option<String> {
    let can_now = request.am_willing && request.settings.can_locally;
    if fitting.is_empty() || !can_now || !request.requirement.inherited.is_empty() {
        return None;
    }
    DeclineRule::ALL.into_iter().find_map(|rule| {
        let everywhere = fitting.iter().all(|pool| pool.declines.contains(&rule));
        let why = if everywhere { applies(rule, request, fitting) } else { None }?;
        Some(format!("{why}, and this machine has a job free (rule `{}`)", rule.name()))
    })
}

fn applies(rule: DeclineRule, request: &BuildRequest, fitting: &[&PoolOffer]) -> Option<String> {
    let expected = &request.prediction;
    match rule {
        DeclineRule::PrefersLocal => request
            .nature
            .prefers_local
            .then(|| "the derivation prefers to be built locally (`preferLocalBuild`)".to_owned()),
        DeclineRule::FixedOutput => request
            .nature
            .is_fixed_output
            .then(|| "it is fetched, not made: by way of a builder it would travel twice".to_owned()),
        DeclineRule::Tiny => {
            let is_tiny = expected.is_of_its_like() && expected.most <= TINY;
            (is_tiny && no_builder_is_up(fitting))
                .then(|| format!("no builder is up, and it is tiny: it takes {expected}"))
        }
        DeclineRule::Short => short(expected, fitting),
    }
}

fn short(expected: &Prediction, fitting: &[&PoolOffer]) -> Option<String> {
    let fastest = fitting.iter().min_by_key(|pool| pool.launch)?;
    let ends_first = expected.is_of_its_like() && expected.most.saturating_mul(SLOWER_HERE) <= fastest.launch;
    (ends_first && no_builder_is_up(fitting)).then(|| {
        let launch = Rough(fastest.launch);
        format!("it takes {expected}, and a builder of pool `{}` would only be up in {launch}", fastest.name)
    })
}

fn no_builder_is_up(fitting: &[&PoolOffer]) -> bool {
    fitting.iter().all(|pool| !pool.is_up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DrvPath, Feature, Inherited, Nature, Offer, PoolName, Requirement, System};

    fn pool(name: &str, launch: u64, declines: &[DeclineRule]) -> PoolOffer {
        PoolOffer {
            name: PoolName::new(name),
            offer: Offer {
                systems: [System::new("x86_64-linux")].into(),
                features: [].into(),
                mandatory: [].into(),
            },
            unfit: None,
            capped: None,
            declines: declines.iter().copied().collect(),
            is_up: false,
            launch: Duration::from_secs(launch),
        }
    }

    /// One that this machine can build now, in so many milliseconds, as builds of its name have taken.
    fn request(millis: u64) -> BuildRequest {
        let drv = DrvPath::parse("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-a.drv").unwrap();
        let requirement = Requirement::new(System::new("x86_64-linux"), [].into());
        let mut request = BuildRequest::new(drv, requirement);
        request.am_willing = true;
        request.settings.can_locally = true;
        request.prediction = Prediction::exact(Duration::from_millis(millis));
        request
    }

    fn of_nature(prefers_local: bool, is_fixed_output: bool) -> BuildRequest {
        BuildRequest { nature: Nature { prefers_local, is_fixed_output }, ..request(3_600_000) }
    }

    fn reason(request: &BuildRequest, pools: &[PoolOffer]) -> Option<String> {
        reason_to_decline(request, &pools.iter().collect::<Vec<_>>())
    }

    #[test]
    fn each_rule_has_its_reason_and_can_be_turned_off() {
        let all = || vec![pool("x86", 75, &DeclineRule::ALL)];
        for (rule, request, why) in [
            (
                DeclineRule::PrefersLocal,
                of_nature(true, false),
                "the derivation prefers to be built locally (`preferLocalBuild`), and",
            ),
            (
                DeclineRule::FixedOutput,
                of_nature(false, true),
                "it is fetched, not made: by way of a builder it would travel twice, and",
            ),
            (DeclineRule::Tiny, request(2_000), "no builder is up, and it is tiny: it takes about 2.0 s"),
            (DeclineRule::Short, request(20_000), "a builder of pool `x86` would only be up in 75 s, and"),
        ] {
            let reason_given = reason(&request, &all()).unwrap();
            assert!(reason_given.contains(why), "{reason_given}");
            assert!(reason_given.ends_with(&format!("this machine has a job free (rule `{}`)", rule.name())));
            let mut without = all();
            without[0].declines.remove(&rule);
            let other = reason(&request, &without);
            // What is tiny is short as well.
            assert_eq!(other.is_some(), rule == DeclineRule::Tiny, "{other:?}");
            // One pool that wants it is enough.
            let two = [pool("x86", 75, &DeclineRule::ALL), pool("rack", 1, &[])];
            assert_eq!(reason(&request, &two), None);
        }
    }

    #[test]
    fn what_this_machine_cannot_build_now_is_never_left_to_it() {
        let pools = [pool("x86", 75, &DeclineRule::ALL)];
        for request in [of_nature(true, true), request(1)] {
            assert!(reason(&request, &pools).is_some());
            let busy = BuildRequest { am_willing: false, ..request.clone() };
            assert_eq!(reason(&busy, &pools), None);
            let mut unable = request.clone();
            unable.settings.can_locally = false;
            assert_eq!(reason(&unable, &pools), None);
            let mut heir = request.clone();
            heir.requirement
                .inherit(Inherited([(Feature::new("gccarch-znver3"), request.drv.clone())].into()));
            assert_eq!(reason(&heir, &pools), None);
        }
    }

    #[test]
    fn a_builder_that_is_up_gets_what_is_short_and_the_unseen_is_not_taken_for_it() {
        let up = [PoolOffer { is_up: true, ..pool("x86", 75, &DeclineRule::ALL) }];
        assert_eq!(reason(&request(1), &up), None);
        let down = [pool("x86", 75, &DeclineRule::ALL)];
        assert_eq!(reason(&request(38_000), &down), None, "longer than half of what a launch takes");
        let unseen = BuildRequest { prediction: Prediction::UNKNOWN, ..request(1) };
        assert_eq!(reason(&unseen, &down), None);
        assert_eq!(reason(&request(20_000), &[pool("near", 2, &DeclineRule::ALL)]), None);
    }
}
