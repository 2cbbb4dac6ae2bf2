//! A bounded memory by name, in two generations: when the young one is full, it becomes the old one, and what was old and
//! has not been seen since is forgotten.

use std::collections::HashMap;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Memory<T> {
    young: HashMap<Box<str>, T>,
    old: HashMap<Box<str>, T>,
    /// The most of one generation.
    most: usize,
}

impl<T: Default> Memory<T> {
    /// For no more than `most` names.
    pub(super) fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), most: (most / 2).max(1) }
    }

    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.young.get(name).or_else(|| self.old.get(name))
    }

    /// Changes what is known of a name, which is fresh when nothing is.
    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut T)) {
        if let Some(known) = self.young.get_mut(name) {
            change(known);
            return;
        }
        let mut known = self.old.remove(name).unwrap_or_default();
        change(&mut known);
        if self.young.len() >= self.most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name.into(), known);
    }

    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_again_stays_and_the_rest_is_bounded() {
        let mut memory = Memory::<u32>::new(10);
        for n in 0..100_u32 {
            memory.change("kept", |count| *count += 1);
            memory.change(&format!("other-{n}"), |count| *count += 1);
            assert_eq!(memory.get("kept"), Some(&(n + 1)));
            assert!(memory.len() <= 10, "{} are remembered", memory.len());
        }
        assert_eq!(memory.get("other-0"), None);
        assert_eq!(memory.get("other-99"), Some(&1));
    }
}
