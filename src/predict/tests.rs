//! Predictions as their users meet them: from the closest builds there are, robust, and never absurd.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{MOST_NAMES, MOST_SYSTEMS, Observation, Predictor};
use crate::model::{Basis, Prediction, System};

const X86: &str = "x86_64-linux";

fn seconds(n: f64) -> Duration {
    Duration::from_secs_f64(n)
}

fn observe(predictor: &mut Predictor, name: &str, is_big: bool, took: &[f64]) {
    for took in took {
        let took = seconds(*took);
        predictor.observe(Observation { name, system: X86, is_big, took });
    }
}

fn predict(predictor: &Predictor, name: &str) -> Prediction {
    predictor.predict_for(name, &System::new(X86), false)
}

/// Within a part in a thousand.
#[track_caller]
fn assert_close(left: Duration, right: f64) {
    assert!((left.as_secs_f64() / right - 1.0).abs() < 1e-3, "{left:?} is not {right} s");
}

#[test]
fn the_closest_builds_that_are_known_decide() {
    let mut predictor = Predictor::default();
    assert_eq!(predict(&predictor, "hello-2.12"), Prediction::UNKNOWN);
    observe(&mut predictor, "gcc-15", false, &[3000.0, 3000.0, 3000.0]);
    let any = predict(&predictor, "hello-2.12");
    assert_eq!((any.basis, any.samples), (Basis::System, 3));
    assert_close(any.duration, 3000.0);
    observe(&mut predictor, "hello-2.11", false, &[20.0, 30.0]);
    let package = predict(&predictor, "hello-2.12");
    assert_eq!((package.basis, package.samples), (Basis::Package, 2));
    assert_close(package.duration, 600_f64.sqrt());
    observe(&mut predictor, "hello-2.12", false, &[40.0]);
    let same = predict(&predictor, "hello-2.12");
    assert_eq!((same.basis, same.samples), (Basis::Name, 1));
    assert_close(same.duration, 40.0);
    // Another version is less sure than the same one.
    observe(&mut predictor, "hello-2.11", false, &[40.0, 40.0, 40.0]);
    let other = predict(&predictor, "hello-2.10");
    assert!(other.most.div_duration_f64(other.duration) > same.most.div_duration_f64(same.duration) * 0.9);
    // Another system says nothing.
    let arm = predictor.predict_for("hello-2.12", &System::new("aarch64-linux"), false);
    assert_eq!(arm, Prediction::UNKNOWN);
}

#[test]
fn one_build_that_took_ten_times_as_long_changes_nothing_and_a_package_that_grew_is_believed() {
    let mut predictor = Predictor::default();
    observe(&mut predictor, "a", false, &[10.0, 10.0, 11.0, 10.0, 9.0, 10.0, 10.0, 100.0]);
    assert_close(predict(&predictor, "a").duration, 10.0);
    observe(&mut predictor, "a", false, &[60.0, 60.0, 60.0, 60.0, 60.0]);
    assert_close(predict(&predictor, "a").duration, 60.0);
}

#[test]
fn many_like_builds_are_surer_than_one() {
    let mut predictor = Predictor::default();
    observe(&mut predictor, "once", false, &[10.0]);
    observe(&mut predictor, "often", false, &[10.0; 9]);
    let (once, often) = (predict(&predictor, "once"), predict(&predictor, "often"));
    assert!(often.most < once.most && often.least > once.least, "{once} {often}");
    assert!(once.most < seconds(20.0) && once.least > seconds(5.0), "{once}");
}

#[test]
fn the_unseen_is_like_others_of_its_kind() {
    let mut predictor = Predictor::default();
    observe(&mut predictor, "a", false, &[2.0; 5]);
    observe(&mut predictor, "b", true, &[2000.0; 5]);
    let unseen = |is_big| predictor.predict_for("unseen", &System::new(X86), is_big).duration;
    assert_close(unseen(false), 2.0);
    assert_close(unseen(true), 2000.0);
}

#[test]
fn memory_is_bounded_whatever_is_built() {
    let mut predictor = Predictor::default();
    for n in 0..MOST_NAMES + 1000 {
        observe(&mut predictor, &format!("n{n}-1"), false, &[1.0]);
    }
    assert!(predictor.names() <= MOST_NAMES);
    for n in 0..100 {
        let (system, took) = (format!("s{n}-linux"), seconds(1.0));
        predictor.observe(Observation { name: "a", system: &system, is_big: false, took });
    }
    assert_eq!(predictor.systems.len(), MOST_SYSTEMS);
}

proptest! {
    #[test]
    fn a_prediction_lies_between_what_was_seen_and_its_range_around_it(took in vec(0.001_f64..1e6, 1..40)) {
        let mut predictor = Predictor::default();
        observe(&mut predictor, "a", false, &took);
        let last = &took[took.len().saturating_sub(9)..];
        let least = last.iter().copied().fold(f64::MAX, f64::min);
        let most = last.iter().copied().fold(0.0, f64::max);
        let prediction = predict(&predictor, "a");
        let duration = prediction.duration.as_secs_f64();
        prop_assert!(duration >= least * 0.99 && duration <= most * 1.01, "{prediction} of {last:?}");
        prop_assert!(prediction.least < prediction.duration && prediction.duration < prediction.most);
    }

    #[test]
    fn a_machine_that_is_faster_by_a_factor_is_predicted_so(took in vec(0.1_f64..1e4, 1..20), by in 0.1_f64..10.0) {
        let (mut slow, mut fast) = (Predictor::default(), Predictor::default());
        observe(&mut slow, "a", false, &took);
        observe(&mut fast, "a", false, &took.iter().map(|took| took * by).collect::<Vec<_>>());
        let (slow, fast) = (predict(&slow, "a"), predict(&fast, "a"));
        let factor = |one: Duration, other: Duration| other.as_secs_f64() / one.as_secs_f64() / by;
        prop_assert!((factor(slow.duration, fast.duration) - 1.0).abs() < 0.01);
        prop_assert!((factor(slow.most, fast.most) - 1.0).abs() < 0.01);
    }

    #[test]
    fn no_duration_makes_a_prediction_absurd(millis in vec(any::<u64>(), 1..12)) {
        let mut predictor = Predictor::default();
        for millis in millis {
            let took = Duration::from_millis(millis);
            predictor.observe(Observation { name: "a", system: X86, is_big: true, took });
        }
        let prediction = predict(&predictor, "a");
        prop_assert!(prediction.least <= prediction.duration && prediction.duration <= prediction.most);
        prop_assert!(prediction.most <= Duration::from_secs(31 * 86_400));
    }
}
