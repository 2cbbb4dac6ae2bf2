//! A thousand schedules of random faults: what the facade says about a launch is true, whatever happens on the way.

use std::time::Duration;

use nix_broker::model::ec2::Market;
use nix_broker::provider::ec2::api::{Api, ErrorClass, RunOrder};
use proptest::prelude::*;

use super::{REGION, order};
use crate::fake_ec2::{FakeEc2, Fault};

/// The fault that this number stands for; most requests meet none.
fn fault(number: u8) -> Option<Fault> {
    match number {
        0 => Some(Fault::LostBefore),
        1 => Some(Fault::LostAfter),
        2 => Some(Fault::internal()),
        3 => Some(Fault::internal_after()),
        4 => Some(Fault::throttle()),
        5 => Some(Fault::Refused),
        6 => Some(Fault::html(500)),
        7 => Some(Fault::html(503)),
        8 => Some(Fault::Slow(Duration::from_secs(45))),
        9 => Some(Fault::Slow(Duration::from_secs(5))),
        _ => None,
    }
}

async fn schedule(seed: u64, faults: Vec<u8>, short: bool, hidden: u64) {
    let fake = FakeEc2::on_tokio_time();
    let api = Api::over(fake.wire(), REGION, seed);
    fake.settings(|settings| settings.hidden = Duration::from_secs(hidden));
    let mut rest = faults.into_iter();
    fake.faults(|faults| {
        faults.chaos(Some(Box::new(move |_, _, _| rest.next().and_then(fault))));
        if short {
            faults.shortage("c6a.*", "*a", Some(Market::Spot), None);
        }
    });
    let base = order(&fake, "");
    for index in 0..4 {
        let market = if index % 2 == 0 { Market::Spot } else { Market::OnDemand };
        let order = RunOrder { client_token: format!("token-{index}"), market, ..base.clone() };
        let answer = api.run_instance(&order).await;
        let of_token = |fake: &FakeEc2| {
            let mine = |instance: &crate::fake_ec2::FakeInstance| instance.client_token == order.client_token;
            fake.instances().into_iter().filter(mine).map(|instance| instance.id).collect::<Vec<_>>()
        };
        match answer {
            Ok(seen) => assert_eq!(of_token(&fake), [seen.id]),
            Err(error) if error.may_have_acted => assert!(of_token(&fake).len() <= 1, "{error}"),
            Err(error) => {
                assert!(of_token(&fake).is_empty(), "{error}");
                // A refusal that is about capacity is never hidden behind another, and never repeated.
                let calls = fake.seen_of("RunInstances");
                let refused = |seen: &&crate::fake_ec2::Seen| {
                    seen.form.get("ClientToken") == Some(&order.client_token)
                        && seen.outcome == "InsufficientInstanceCapacity"
                };
                let refusals = calls.iter().filter(refused).count();
                assert_eq!(refusals, usize::from(error.class == ErrorClass::Capacity), "{error}");
            }
        }
    }
    // Whatever was launched, known or not, is found and ended once the trouble is over.
    fake.faults(|faults| faults.calm());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let all = api.instances(&[]).await.unwrap();
    assert_eq!(all.len(), fake.instances().len());
    let ids: Vec<String> = all.into_iter().map(|seen| seen.id).collect();
    assert!(api.terminate(&ids).await.values().all(Result::is_ok));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(fake.alive().is_empty() && fake.volumes().is_empty());
    assert!(fake.bills().iter().all(|bill| !bill.is_open));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_said_about_a_launch_is_true_under_a_thousand_schedules_of_faults(
        seed in any::<u64>(),
        faults in prop::collection::vec(0_u8..14, 0..40),
        short in any::<bool>(),
        hidden in 0_u64..10,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(schedule(seed, faults, short, hidden));
    }
}
