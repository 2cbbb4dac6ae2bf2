//! Who inherits which processor: the rule, and the walk over the inputs that applies it. Pure: what a derivation says
//! comes through [`Files`].
//!
//! The rule, for a derivation D:
//!
//! - D *carries*, to whoever uses its outputs, the `gccarch-*` it names itself; if it names none, those that its inputs
//!   carry, all of them.
//! - A fixed-output derivation carries nothing: its content is known, and the same whatever fetched it. It does need what
//!   its inputs carry, because it runs a tuned `curl`.
//! - D *needs*, when it names none itself, what its inputs carry for programs of its own platform. An `x86_64-linux`
//!   bundle of `aarch64-linux` outputs runs none of them. What Nix makes itself (`builtin:buildenv`) needs nothing, and
//!   carries like any other.
//!
//! Nothing else is inherited: `kvm` or `big-parallel` say how something is made, not what the result runs on.
//!
//! Not seen: the inputs of a content-addressed derivation that Nix has resolved. It names their outputs only, and
//! carries nothing unless it names a processor itself.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::memo::Memo;
use crate::model::{DrvPath, Feature, Inherited, Nature};
use crate::protocol::derivation::Ancestry;

/// The most that one derivation carries: more is no processor, but somebody's joke.
const MAX_TUNINGS: usize = 64;
/// The longest name of a processor that is believed.
const MAX_FEATURE: usize = 128;

/// Processor features by the platform whose programs are made for them, each with the derivation that names it.
type Tunings = BTreeMap<(Platform, Feature), DrvPath>;

/// What a derivation needs and carries; most of them nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lineage {
    needs: Option<Arc<Inherited>>,
    carries: Option<Arc<Tunings>>,
    /// What it says of where it is best built.
    pub(super) nature: Nature,
}

impl Lineage {
    /// What it needs because of its inputs.
    pub(super) fn needs(&self) -> Inherited {
        self.needs.as_deref().cloned().unwrap_or_default()
    }
}

/// A kind of machine whose programs run side by side: 32-bit x86 programs are run by 64-bit derivations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Platform(Arc<str>);

impl Platform {
    fn of(system: &str) -> Self {
        match system.split_once('-') {
            Some(("i386" | "i486" | "i586" | "i686" | "x86_64", kernel)) => {
                Self(format!("x86-{kernel}").into())
            }
            Some(_) | None => Self(system.into()),
        }
    }
}

/// Where derivations are read.
pub(super) trait Files {
    /// What a derivation says, and how many bytes that took. One that cannot be read says nothing, for good: the walk
    /// goes on without it.
    fn read(&mut self, drv: &DrvPath) -> (Option<Ancestry>, u64);
}

/// How much may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.files == 0 || self.bytes == 0
    }
}

/// A walk that can be interrupted: what it has found out is in the memo, so another one that starts over is shorter.
#[derive(Debug)]
pub(super) struct Walk {
    root: DrvPath,
    /// From the root downward, each an input of the one before.
    path: Vec<Step>,
    /// Those on the path, lest a file that somebody made up leads back to it.
    on_path: HashSet<DrvPath>,
}

/// A derivation whose inputs are being looked at.
#[derive(Debug)]
struct Step {
    drv: DrvPath,
    ancestry: Ancestry,
    /// The inputs that have been looked at.
    done: usize,
    joined: Option<Arc<Tunings>>,
}

/// Where a walk is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// At its end.
    Done(Lineage),
    /// The budget is spent.
    Spent,
}

impl Walk {
    pub(super) fn to(root: DrvPath) -> Self {
        Self { root, path: Vec::new(), on_path: HashSet::new() }
    }

    /// Whose lineage it is.
    pub(super) fn root(&self) -> &DrvPath {
        &self.root
    }

    /// Goes on until it is done or the budget is spent.
    pub(super) fn advance(
        &mut self,
        memo: &Mutex<Memo>,
        files: &mut impl Files,
        budget: &mut Budget,
    ) -> Progress {
        if self.path.is_empty() {
            if let Some(known) = memo.lock().get(&self.root) {
                return Progress::Done(known);
            }
            if budget.is_spent() {
                return Progress::Spent;
            }
            if let Some(lineage) = self.enter(self.root.clone(), files, budget) {
                memo.lock().insert(self.root.clone(), lineage.clone());
                return Progress::Done(lineage);
            }
        }
        while let Some(step) = self.path.last_mut() {
            let Some(input) = step.ancestry.inputs.get(step.done).cloned() else {
                if let Some(done) = self.leave(&mut memo.lock()) {
                    return Progress::Done(done);
                }
                continue;
            };
            let known = memo.lock().get(&input);
            let lineage = match known {
                Some(lineage) => lineage,
                None if self.on_path.contains(&input) => Lineage::default(),
                None if budget.is_spent() => return Progress::Spent,
                None => match self.enter(input.clone(), files, budget) {
                    Some(lineage) => {
                        memo.lock().insert(input, lineage.clone());
                        lineage
                    }
                    None => continue,
                },
            };
            if let Some(step) = self.path.last_mut() {
                join(&mut step.joined, lineage.carries.as_ref());
                step.done += 1;
            }
        }
        // The root is the last to leave the path, and its lineage is answered above.
        Progress::Done(Lineage::default())
    }

    /// Ends the walk where it is: what has been found is taken for all there is, and remembered, lest every question lead
    /// the same endless way.
    pub(super) fn give_up(mut self, memo: &Mutex<Memo>) -> Lineage {
        let mut memo = memo.lock();
        while !self.path.is_empty() {
            if let Some(root) = self.leave(&mut memo) {
                return root;
            }
        }
        Lineage::default()
    }

    /// Reads a derivation: either it is on the path now, or there is nothing to look at below it.
    fn enter(&mut self, drv: DrvPath, files: &mut impl Files, budget: &mut Budget) -> Option<Lineage> {
        let (ancestry, bytes) = files.read(&drv);
        budget.files = budget.files.saturating_sub(1);
        budget.bytes = budget.bytes.saturating_sub(bytes);
        let Some(ancestry) = ancestry else { return Some(Lineage::default()) };
        let own = own_tunings(&drv, &ancestry);
        if !own.is_empty() {
            let carries = (!ancestry.is_fixed).then(|| Arc::new(own));
            return Some(Lineage { needs: None, carries, nature: nature_of(&ancestry) });
        }
        self.on_path.insert(drv.clone());
        self.path.push(Step { drv, ancestry, done: 0, joined: None });
        None
    }

    /// Takes the last step off the path and hands what it carries to the one before; answers when that was the root.
    fn leave(&mut self, memo: &mut Memo) -> Option<Lineage> {
        let step = self.path.pop()?;
        self.on_path.remove(&step.drv);
        let lineage = step.lineage();
        memo.insert(step.drv, lineage.clone());
        match self.path.last_mut() {
            Some(above) => {
                join(&mut above.joined, lineage.carries.as_ref());
                above.done += 1;
                None
            }
            None => Some(lineage),
        }
    }
}

impl Step {
    fn lineage(&self) -> Lineage {
        let nature = nature_of(&self.ancestry);
        let Some(joined) = &self.joined else { return Lineage { nature, ..Lineage::default() } };
        let platform = Platform::of(&self.ancestry.system);
        let needs: BTreeMap<_, _> = joined
            .iter()
            .filter(|((of, _), _)| *of == platform && !self.ancestry.is_builtin)
            .map(|((_, feature), drv)| (feature.clone(), drv.clone()))
            .collect();
        Lineage {
            needs: (!needs.is_empty()).then(|| Arc::new(Inherited(needs))),
            carries: (!self.ancestry.is_fixed).then(|| Arc::clone(joined)),
            nature,
        }
    }
}

fn nature_of(ancestry: &Ancestry) -> Nature {
    Nature { prefers_local: ancestry.prefers_local, is_fixed_output: ancestry.is_fixed }
}

fn own_tunings(drv: &DrvPath, ancestry: &Ancestry) -> Tunings {
    let named = ancestry.features.iter().filter(|feature| feature.len() <= MAX_FEATURE);
    let processors = named.map(|feature| Feature::new(feature.as_str())).filter(Feature::is_processor);
    let platform = Platform::of(&ancestry.system);
    processors.take(MAX_TUNINGS).map(|feature| ((platform.clone(), feature), drv.clone())).collect()
}

/// Adds what one input carries. The first that brings a feature is named for it: the order of the inputs is that of the
/// file. Where all inputs carry the same, as is usual, no copy is made.
fn join(joined: &mut Option<Arc<Tunings>>, carried: Option<&Arc<Tunings>>) {
    match (joined, carried) {
        (_, None) => {}
        (joined @ None, Some(carried)) => *joined = Some(Arc::clone(carried)),
        (Some(joined), Some(carried)) => {
            for (tuning, drv) in carried.iter() {
                if joined.len() < MAX_TUNINGS && !joined.contains_key(tuning) {
                    Arc::make_mut(joined).insert(tuning.clone(), drv.clone());
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod testing;

#[cfg(test)]
mod tests;
