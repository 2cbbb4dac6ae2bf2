//! One behaviour each, from the first event to the last.

use super::fixtures::*;
use crate::model::{BuildId, BuilderId};

#[test]
fn a_build_launches_a_builder_and_runs_on_it() {
    let mut world = World::new(vec![pool("x86", X86, &[])]);
    world.accept(1, X86, &[]);
    assert_eq!(world.launches(), 1);
    world.launched(1);
    world.ready(1);
    assert_eq!(world.running[&BuildId(1)].0, BuilderId(1));
}
