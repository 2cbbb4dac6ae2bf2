//! Store paths, derivation paths and output names: parsed once, valid from then on.
//!
//! Only the store directory `/nix/store` is known: a derivation's hashes depend on it, so a machine with another one
//! cannot share builds with ours.

use std::fmt;
use std::sync::Arc;

/// Where every path of this product lies.
pub const STORE_DIR: &str = "/nix/store";

/// Length of the hash part, in nix32 characters.
const HASH_LEN: usize = 32;
/// Nix's own limit on the name part.
const MAX_NAME_LEN: usize = 211;
/// Why a text is not a store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// The text does not lie directly in `/nix/store`.
    #[error("`{0}` is not directly in /nix/store")]
    NotInStore(String),
    /// The 32 characters after the last slash are not nix32, or no `-` follows them.
    #[error("`{0}` has no valid hash part")]
    BadHash(String),
    /// The name part is empty, too long, or has characters Nix forbids.
    #[error("`{0}` has no valid name part")]
    BadName(String),
    /// A derivation path must end in `.drv`.
    #[error("`{0}` is not a derivation")]
    NotADerivation(String),
    /// An output name follows the rules of a name part.
    #[error("`{0}` is not an output name")]
    BadOutputName(String),
}

/// A valid store path, kept as its base name `<hash>-<name>`; prints as the full path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

impl StorePath {
    /// Reads a full path such as `/nix/store/<hash>-<name>`.
    pub fn parse(path: &str) -> Result<Self, StorePathError> {
        match path.strip_prefix(STORE_DIR).and_then(|rest| rest.strip_prefix('/')) {
            Some(base_name) => Self::from_base_name(base_name),
            None => Err(StorePathError::NotInStore(shorten(path))),
        }
    }

    /// Reads `<hash>-<name>`.
    pub fn from_base_name(base_name: &str) -> Result<Self, StorePathError> {
        let bytes = base_name.as_bytes();
        let hash_is_valid =
            bytes.len() > HASH_LEN && bytes[..HASH_LEN].iter().all(is_nix32) && bytes[HASH_LEN] == b'-';
        if !hash_is_valid {
            return Err(StorePathError::BadHash(shorten(base_name)));
        }
        if !is_valid_name(&bytes[HASH_LEN + 1..]) {
            return Err(StorePathError::BadName(shorten(base_name)));
        }
        Ok(Self(base_name.into()))
    }

    /// `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// The part after the hash.
    pub fn name(&self) -> &str {
        &self.0[HASH_LEN + 1..]
    }

    /// The 32 nix32 characters.
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_LEN]
    }

    /// Whether this names a derivation.
    pub fn is_derivation(&self) -> bool {
        self.0.ends_with(".drv")
    }

    /// The full path as a file system path.
    pub fn to_path_buf(&self) -> std::path::PathBuf {
        std::path::Path::new(STORE_DIR).join(&*self.0)
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE_DIR}/{}", self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The store path of a `.drv` file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DrvPath(StorePath);

impl DrvPath {
    /// Reads a full path that ends in `.drv`.
    pub fn parse(path: &str) -> Result<Self, StorePathError> {
        Self::try_from(StorePath::parse(path)?)
    }

    /// The store path itself.
    pub fn as_store_path(&self) -> &StorePath {
        &self.0
    }

    /// The derivation's name: no hash, no `.drv`.
    pub fn name(&self) -> &str {
        self.0.name().strip_suffix(".drv").unwrap_or_else(|| self.0.name())
    }
}

impl TryFrom<StorePath> for DrvPath {
    type Error = StorePathError;

    fn try_from(path: StorePath) -> Result<Self, StorePathError> {
        if path.is_derivation() {
            Ok(Self(path))
        } else {
            Err(StorePathError::NotADerivation(path.to_string()))
        }
    }
}

impl fmt::Display for DrvPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a derivation's output: `out`, `dev`, ...
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputName(Arc<str>);

impl OutputName {
    /// Reads a name; the characters of a store path's name are allowed.
    pub fn parse(name: &str) -> Result<Self, StorePathError> {
        if is_valid_name(name.as_bytes()) {
            Ok(Self(name.into()))
        } else {
            Err(StorePathError::BadOutputName(shorten(name)))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// nix32 leaves out `e`, `o`, `t` and `u`.
fn is_nix32(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'd' | b'f'..=b'n' | b'p'..=b's' | b'v'..=b'z')
}

/// Nix's rule for names (`checkName` in path.cc): its characters, its length, and nothing that a shell or a file
/// system reads as `.` or `..`.
fn is_valid_name(name: &[u8]) -> bool {
    let dots = name == b"." || name == b".." || name.starts_with(b".-") || name.starts_with(b"..-");
    !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && !dots
        && name.iter().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_' | b'?' | b'=')
        })
}

/// What a peer sent may be megabytes of garbage; an error message is not.
fn shorten(text: &str) -> String {
    const MAX_SHOWN: usize = 300;
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i";

    #[test]
    fn a_full_path_is_kept_as_its_parts() {
        let path = StorePath::parse(&format!("/nix/store/{HASH}-hello-2.12.drv")).unwrap();
        assert_eq!(path.name(), "hello-2.12.drv");
        assert_eq!(path.hash_part(), HASH);
        assert_eq!(path.to_string(), format!("/nix/store/{HASH}-hello-2.12.drv"));
        assert_eq!(DrvPath::try_from(path).unwrap().name(), "hello-2.12");
    }

    #[test]
    fn what_nix_forbids_is_refused() {
        let long = "x".repeat(212);
        for bad in [
            "",
            "/nix/store/",
            "/nix/store/short-name",
            "/etc/passwd",
            &format!("/nix/store/{HASH}"),
            &format!("/nix/store/{HASH}-"),
            &format!("/nix/store/{HASH}-a/b"),
            &format!("/nix/store/{HASH}-.."),
            &format!("/nix/store/{HASH}-a b"),
            &format!("/nix/store/{}-a", HASH.replace('k', "e")),
            &format!("/nix/store/../store/{HASH}-a"),
            &format!("/nix/store/{HASH}-{long}"),
        ] {
            assert!(StorePath::parse(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn a_message_about_garbage_stays_short() {
        let error = StorePath::parse(&"é".repeat(100_000)).unwrap_err();
        assert!(error.to_string().len() < 1_000);
    }
}
