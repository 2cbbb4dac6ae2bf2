//! NAR, Nix's archive format: one file system tree as one canonical stream of bytes.
//!
//! [`parser`] reads it sans-IO, in memory that does not depend on the size of the tree; [`tree`] writes the tree at a
//! path; [`copy()`] carries a NAR from one asynchronous stream to another and finds its end. Unpacking is nobody's
//! business here: only Nix writes into a store.

pub mod copy;
pub mod parser;
pub mod tree;

pub use copy::{CopyError, copy};
pub use parser::{NarError, NarEvent, NarParser};
pub use tree::{TreeError, write_tree};

use sha2::{Digest, Sha256};

use super::hash::Sha256Hash;

/// What a path info says about a NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarDigest {
    /// The hash of the whole archive.
    pub sha256: Sha256Hash,
    /// Its length in bytes.
    pub size: u64,
}

/// Computes a [`NarDigest`] of bytes as they pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Digester {
    sha256: Sha256,
    size: u64,
}

impl Digester {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.size += bytes.len() as u64;
    }

    pub(crate) fn finish(self) -> NarDigest {
        NarDigest { sha256: Sha256Hash::from(<[u8; 32]>::from(self.sha256.finalize())), size: self.size }
    }
}

#[cfg(test)]
mod tests;
