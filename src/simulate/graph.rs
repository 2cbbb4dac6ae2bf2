//! What is to be built: derivations, what each needs, and how much work each is.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::model::{DrvPath, Nature, Requirement};

/// More than all of nixpkgs has.
pub const MOST_NODES: usize = 500_000;
/// Names of a cycle that are shown.
const SHOWN_OF_CYCLE: usize = 6;

/// How much work a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// How long it takes with a machine of the reference speed to itself that has as many cores as it has threads.
    pub building: Duration,
    /// Processors that it keeps busy when it may. At least 1.
    pub threads: u32,
    /// Inputs to the builder.
    pub uploading: Duration,
    /// Outputs from the builder.
    pub downloading: Duration,
}

/// One derivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its path.
    pub drv: DrvPath,
    /// System and features that it needs.
    pub requirement: Requirement,
    /// What it says of where it is best built.
    pub nature: Nature,
    /// What must be built before, as places in the graph.
    pub needs: Vec<usize>,
    /// Not offered before this moment.
    pub arrives: Duration,
    /// How much it is.
    pub work: Work,
}

/// Why there is nothing to simulate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// No node at all.
    #[error("there is nothing to build")]
    Empty,
    /// Derivations that need each other: no Nix makes such.
    #[error("these derivations need each other, so none of them can be built: {}", list(.0))]
    Cycle(Vec<String>),
    /// Too many.
    #[error("{0} derivations are more than the {MOST_NODES} that can be simulated")]
    TooLarge(usize),
}

fn list(names: &[String]) -> String {
    let mut text: Vec<String> = names.iter().take(SHOWN_OF_CYCLE).map(|name| format!("`{name}`")).collect();
    if names.len() > SHOWN_OF_CYCLE {
        text.push(format!("and {} more", names.len() - SHOWN_OF_CYCLE));
    }
    text.join(", ")
}

/// Derivations without a cycle.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: Vec<Node>,
    needed_by: Vec<Vec<usize>>,
    /// Such that everything comes after what it needs.
    order: Vec<usize>,
}

impl Graph {
    /// A graph of these. What a node needs besides them counts as built.
    pub fn new(mut nodes: Vec<Node>) -> Result<Self, GraphError> {
        if nodes.is_empty() {
            return Err(GraphError::Empty);
        }
        if nodes.len() > MOST_NODES {
            return Err(GraphError::TooLarge(nodes.len()));
        }
        let count = nodes.len();
        let mut needed_by = vec![Vec::new(); count];
        for (ix, node) in nodes.iter_mut().enumerate() {
            node.needs.retain(|needed| *needed < count);
            node.needs.sort_unstable();
            node.needs.dedup();
            for needed in &node.needs {
                needed_by[*needed].push(ix);
            }
        }
        let order = ordered(&nodes, &needed_by)?;
        Ok(Self { nodes, needed_by, order })
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What needs this node.
    pub(super) fn needed_by(&self, ix: usize) -> &[usize] {
        &self.needed_by[ix]
    }

    /// How long all builds together take, one after the other, on one thread each as many as they have.
    pub fn total(&self) -> Duration {
        self.nodes.iter().map(|node| node.work.building).sum()
    }

    /// How long the longest chain takes: at the reference speed no number of machines finishes sooner.
    pub fn longest_chain(&self) -> Duration {
        let mut ends = vec![Duration::ZERO; self.nodes.len()];
        for ix in &self.order {
            let node = &self.nodes[*ix];
            let begins = node.needs.iter().map(|needed| ends[*needed]).max().unwrap_or_default();
            ends[*ix] = begins.max(node.arrives) + node.work.building;
        }
        ends.into_iter().max().unwrap_or_default()
    }

    /// For each node, the longest chain of what cannot begin before it has ended.
    pub fn tails(&self) -> Vec<Duration> {
        let mut tails = vec![Duration::ZERO; self.nodes.len()];
        for ix in self.order.iter().rev() {
            let after = |needing: &usize| tails[*needing] + self.nodes[*needing].work.building;
            tails[*ix] = self.needed_by[*ix].iter().map(after).max().unwrap_or_default();
        }
        tails
    }

    /// How many builds need each system, the most frequent first.
    pub fn systems(&self) -> Vec<(String, usize)> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for node in &self.nodes {
            *counts.entry(node.requirement.system.as_str()).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), name.clone()));
        counts
    }
}

fn ordered(nodes: &[Node], needed_by: &[Vec<usize>]) -> Result<Vec<usize>, GraphError> {
    let mut missing: Vec<usize> = nodes.iter().map(|node| node.needs.len()).collect();
    let mut free: VecDeque<usize> = (0..nodes.len()).filter(|ix| missing[*ix] == 0).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(ix) = free.pop_front() {
        order.push(ix);
        for needing in &needed_by[ix] {
            missing[*needing] -= 1;
            if missing[*needing] == 0 {
                free.push_back(*needing);
            }
        }
    }
    if order.len() == nodes.len() {
        return Ok(order);
    }
    Err(GraphError::Cycle(a_cycle(nodes, &missing)))
}

/// The names along one cycle, of which there is one: from any node that is left one always gets to another such node.
fn a_cycle(nodes: &[Node], missing: &[usize]) -> Vec<String> {
    let is_left = |ix: &usize| missing[*ix] > 0;
    let mut seen = BTreeMap::new();
    let mut path = Vec::new();
    let mut next = (0..nodes.len()).find(is_left);
    while let Some(ix) = next {
        if let Some(first) = seen.insert(ix, path.len()) {
            path.drain(..first);
            break;
        }
        path.push(ix);
        next = nodes[ix].needs.iter().copied().find(is_left);
    }
    path.into_iter().map(|ix| nodes[ix].drv.name().to_owned()).collect()
}
