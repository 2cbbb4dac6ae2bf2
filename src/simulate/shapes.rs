//! Graphs of a known shape, for tests and for comparing configurations.

use std::fmt;
use std::time::Duration;

use super::graph::{Graph, GraphError, Node, Work};
use super::random::Random;
use crate::model::{DrvPath, Feature, Nature, Requirement, StorePath, System};

/// The characters of Nix's hashes.
const NIX32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
/// What a transfer takes where nothing is known.
pub const TRANSFER: Duration = Duration::from_millis(500);

const X86: &str = "x86_64-linux";
const ARM: &str = "aarch64-linux";

/// A shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// 200 builds that need nothing, of 20 s to 3 min.
    Wide,
    /// A chain of 40 builds of 30 s to 90 s.
    Deep,
    /// Ten times over: one build, thirty that need it, one that needs them all.
    Diamond,
    /// 150 short builds, and three that take 40 min on many threads.
    LongTail,
    /// Two towers of wide layers, one for x86 and one for Arm.
    TwoSystems,
}

/// All of them.
pub const SHAPES: [Shape; 5] = [Shape::Wide, Shape::Deep, Shape::Diamond, Shape::LongTail, Shape::TwoSystems];

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wide => "wide",
            Self::Deep => "deep",
            Self::Diamond => "diamond",
            Self::LongTail => "long-tail",
            Self::TwoSystems => "two-systems",
        })
    }
}

impl Shape {
    /// The shape of this name.
    pub fn parse(name: &str) -> Option<Self> {
        SHAPES.into_iter().find(|shape| shape.to_string() == name)
    }

    /// A graph of this shape; the seed decides the durations.
    pub fn graph(self, seed: u64) -> Result<Graph, GraphError> {
        let mut random = Random::new(seed);
        let mut plan = Plan { nodes: Vec::new(), random: &mut random };
        match self {
            Self::Wide => {
                for _ in 0..200 {
                    plan.add(X86, &[], 20..180, 1);
                }
            }
            Self::Deep => {
                let mut last = plan.add(X86, &[], 30..90, 2);
                for _ in 1..40 {
                    last = plan.add(X86, &[last], 30..90, 2);
                }
            }
            Self::Diamond => {
                let mut last = None;
                for _ in 0..10 {
                    let top = plan.add(X86, last.as_slice(), 20..60, 2);
                    let middle: Vec<usize> = (0..30).map(|_| plan.add(X86, &[top], 20..240, 1)).collect();
                    last = Some(plan.add(X86, &middle, 20..60, 2));
                }
            }
            Self::LongTail => {
                for _ in 0..150 {
                    plan.add(X86, &[], 5..60, 1);
                }
                for _ in 0..3 {
                    let huge = plan.add(X86, &[], 2400..2401, 16);
                    plan.nodes[huge].requirement.features.insert(Feature::new("big-parallel"));
                }
            }
            Self::TwoSystems => {
                for system in [X86, ARM] {
                    let mut below: Vec<usize> = Vec::new();
                    for _ in 0..4 {
                        let needs = below.clone();
                        below = (0..25).map(|_| plan.add(system, &needs, 30..200, 1)).collect();
                    }
                }
            }
        }
        Graph::new(plan.nodes)
    }
}

struct Plan<'a> {
    nodes: Vec<Node>,
    random: &'a mut Random,
}

impl Plan<'_> {
    fn add(&mut self, system: &str, needs: &[usize], seconds: std::ops::Range<u64>, threads: u32) -> usize {
        let ix = self.nodes.len();
        let (least, most) = (Duration::from_secs(seconds.start), Duration::from_secs(seconds.end));
        let building = self.random.between(least, most);
        let work = Work { building, threads, uploading: TRANSFER, downloading: TRANSFER };
        if let Some(drv) = drv_of_name(&format!("build-{ix:04}")) {
            self.nodes.push(Node {
                drv,
                requirement: Requirement::new(System::new(system), [].into()),
                nature: Nature::default(),
                needs: needs.to_vec(),
                arrives: Duration::ZERO,
                work,
            });
        }
        ix
    }
}

/// A derivation of this name, for what has no path of its own. `None` when Nix allows no such name.
pub fn drv_of_name(name: &str) -> Option<DrvPath> {
    let mut random = Random::of_name(name);
    let hash: String = (0..32).map(|_| char::from(NIX32[random.below(NIX32.len())])).collect();
    DrvPath::try_from(StorePath::from_base_name(&format!("{hash}-{name}.drv")).ok()?).ok()
}
