//! The real scheduler on simulated time: what a configuration would do with a graph of builds, and what that would cost.
//!
//! Owns the imitation of everything around the scheduler: Nix, which offers a build when its inputs are there; EC2, which
//! takes its time and sends a bill; machines, whose builds share their processors. What is decided is decided by
//! [`scheduler::Fleet`](crate::scheduler::Fleet) unchanged, what is bought by the provider's own choice of a machine at
//! the prices of the catalog. Two other deciders exist to be compared with: `first_come` and `stock`.
//!
//! No clock, no I/O, and no randomness but a seed: the same question has the same answer.
//!
//! ```text
//! read ─▶ durations ─▶ graph ─┐
//! shapes ─────────────────────┤
//!                             ▼
//! client (Nix) ◀──▶ world ◀──▶ decider: Fleet | first_come | stock
//!                     │ ▲
//!                  buy ▼ │ machine
//!                  timeline ─▶ report, svg
//! ```
//!
//! # What is modelled, and how
//!
//! - **Nix** offers each derivation when its last input is there, in the order of their names, one every 2 ms; asks again
//!   5 s after a postponement; builds locally what is declined when `max-jobs` leaves room, and fails it otherwise.
//! - **A build** has a duration on a machine of its own and a number of threads. Builds that share a machine share its
//!   processors thread by thread; see [`machine`].
//! - **A machine on EC2** runs 8 to 20 s after its launch and is ready 32 to 50 s later (evenly distributed: an
//!   expectation, not a measurement). It is billed from the moment it runs until it is ended, by the second, a minute at
//!   least, with its volume and address. Stopped machines (`idle-action`) are taken as terminated.
//! - **Transfers** take half a second before and after each build, unless a history says otherwise; the former less, down
//!   to a fifth, the more of its inputs were made on the same machine.
//! - **Spot** costs a fixed part of the on-demand price; interruptions come at a rate that is asked for.

mod attempts;
pub mod buy;
mod client;
mod decider;
pub mod durations;
mod first_come;
pub mod fixed;
mod foresight;
pub mod graph;
pub mod machine;
mod machines;
mod random;
pub mod read;
pub mod recorded;
pub mod report;
mod running;
pub mod shapes;
mod stock;
pub mod svg;
pub mod timeline;
mod world;

use std::time::{Duration, Instant};

pub use durations::{Durations, Source};
pub use fixed::FixedFleet;
pub use foresight::Foresight;
pub use graph::{Graph, GraphError, Node, Work};
pub use random::Random;
pub use read::{ReadError, read};
pub use report::Report;
pub use timeline::Timeline;

use self::decider::Decider;
use self::first_come::FirstCome;
use self::stock::Stock;
use self::world::World;
use crate::model::{Caps, PoolSpec, Spent, System};
use crate::predict::Predictor;
use crate::scheduler::Fleet;

/// Who decides.
#[derive(Clone, Debug)]
pub enum Contender {
    /// The broker, with these pools and caps.
    Broker {
        /// As configured.
        pools: Vec<PoolSpec>,
        /// What they may cost.
        caps: Caps,
    },
    /// The same pools without a plan: every build takes the first free slot in the order in which they came, and a
    /// machine of the usual size is launched for as many as wait.
    FirstCome {
        /// As configured.
        pools: Vec<PoolSpec>,
    },
    /// Machines that are always there, used by stock Nix.
    Fixed(FixedFleet),
}

/// What they all have to deal with.
#[derive(Clone, Debug)]
pub struct Scenario<'a> {
    /// What is to be built.
    pub graph: &'a Graph,
    /// `max-jobs` of the client: slots, and processors, of its own machine.
    pub max_jobs: u32,
    /// What its own machine builds for.
    pub system: System,
    /// What the broker knows beforehand of how long builds take.
    pub foresight: Foresight,
    /// What it remembers of earlier builds.
    pub memory: Predictor,
    /// Where all chance comes from.
    pub seed: u64,
    /// What spot costs, in percent of the on-demand price.
    pub spot_percent: u32,
    /// What goes wrong.
    pub faults: Faults,
}

/// What goes wrong, and until when.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// How often a spot instance is taken back, per hour that it runs.
    pub interruptions: f64,
    /// How often a machine goes away without a word, per hour that it runs.
    pub losses: f64,
    /// The part of launches that fail.
    pub failed_launches: f64,
    /// Nothing goes wrong after this moment; `None` is no end.
    pub until: Option<Duration>,
}

/// Lets this contender build the graph. `epoch` may be any moment: only differences count.
pub fn run(scenario: &Scenario<'_>, contender: &Contender, epoch: Instant) -> Timeline {
    let (decider, pools, given): (Box<dyn Decider>, &[PoolSpec], &[buy::Machine]) = match contender {
        Contender::Broker { pools, caps } => {
            let fleet = Fleet::new(pools.clone(), epoch).with_money(*caps, &Spent::default());
            (Box::new(fleet), pools, &[])
        }
        Contender::FirstCome { pools } => (Box::new(FirstCome::new(pools.clone(), epoch)), pools, &[]),
        Contender::Fixed(fleet) => (Box::new(Stock::new(fleet)), &[], &fleet.machines),
    };
    World::new(scenario, decider, pools, given, epoch).run()
}
