//! The two kinds of key: the one we prove ourselves with, and those a host proves itself with.
//!
//! Owns their text forms and the client key's file. Which host has which keys is for the caller to know.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};

/// Why a key is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot {action} the key `{}`", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds no private key that we can use.
    #[error("`{}` is not a usable private key: {reason}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The text is not a public key, or of a kind that is not supported.
    #[error("`{text}` is not a usable host key: {reason}")]
    HostKey {
        /// Its beginning.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The private key we log in with.
#[derive(Clone)]
pub struct ClientKey(Arc<PrivateKey>);

impl ClientKey {
    /// A fresh Ed25519 key.
    pub fn generate() -> Self {
        Self(Arc::new(PrivateKey::from(Ed25519Keypair::random(&mut russh::keys::key::safe_rng()))))
    }

    /// The key in this file, or a fresh one that is then in this file (mode 0600, complete or not at all).
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        let written = |source| KeyError::File { action: "write", path: path.to_owned(), source };
        let key = Self::generate();
        let pem = key.0.to_openssh(LineEnding::LF).map_err(io::Error::other).map_err(written)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        // A named temporary file has mode 0600 from its first moment on.
        let mut file =
            tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new("."))).map_err(written)?;
        io::Write::write_all(&mut file, pem.as_bytes()).map_err(written)?;
        file.as_file().sync_all().map_err(written)?;
        match file.persist_noclobber(path) {
            Ok(_) => Ok(key),
            // Somebody else was faster; there is one key, and it is theirs.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(error) => Err(written(error.error)),
        }
    }

    /// The key in this file, in OpenSSH's own format and without a passphrase.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let pem = std::fs::read(path).map_err(|source| KeyError::File {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let unusable = |reason: String| KeyError::Unusable { path: path.to_owned(), reason };
        let key = PrivateKey::from_openssh(&pem).map_err(|error| unusable(error.to_string()))?;
        if key.is_encrypted() {
            return Err(unusable("it has a passphrase, and nobody is there to type it".into()));
        }
        if !is_supported(&key.algorithm()) {
            return Err(unusable(format!("{} keys are not supported, use Ed25519", key.algorithm())));
        }
        Ok(Self(Arc::new(key)))
    }

    /// The public half as a line of `authorized_keys`: `ssh-ed25519 AAAA...`.
    pub fn public_openssh(&self) -> String {
        let mut public = self.0.public_key().clone();
        public.set_comment("");
        // Only a comment that is no text could make this fail, and there is none.
        public.to_openssh().unwrap_or_default().trim_end().to_owned()
    }

    pub(super) fn private(&self) -> &Arc<PrivateKey> {
        &self.0
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientKey({})", self.0.fingerprint(HashAlg::Sha256))
    }
}

/// Both halves of a fresh Ed25519 key for a host that is yet to be made, as text.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKeyPair {
    /// What OpenSSH keeps in `/etc/ssh/ssh_host_ed25519_key`. Secret.
    pub private_openssh_pem: String,
    /// `ssh-ed25519 AAAA...`.
    pub public_openssh: String,
}

impl HostKeyPair {
    /// Fails only when the system has no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let key = ClientKey::generate();
        let pem = key
            .0
            .to_openssh(LineEnding::LF)
            .map_err(|error| KeyError::HostKey { text: "a fresh key".into(), reason: error.to_string() })?;
        Ok(Self { private_openssh_pem: pem.to_string(), public_openssh: key.public_openssh() })
    }
}

impl fmt::Debug for HostKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKeyPair({})", self.public_openssh)
    }
}

/// A public key that proves a host.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey(PublicKey);

impl HostKey {
    /// Reads `ssh-ed25519 AAAA...`; a comment after it is dropped.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let refuse = |reason: String| KeyError::HostKey { text: text.chars().take(60).collect(), reason };
        let mut key = PublicKey::from_openssh(text).map_err(|error| refuse(error.to_string()))?;
        key.set_comment("");
        if !is_supported(&key.algorithm()) {
            return Err(refuse(format!("{} keys are not supported", key.algorithm())));
        }
        Ok(Self(key))
    }

    /// `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    pub(super) fn from_public(mut key: PublicKey) -> Self {
        key.set_comment("");
        Self(key)
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.0.algorithm()
    }

    pub(super) fn matches(&self, key: &PublicKey) -> bool {
        self.0.key_data() == key.key_data()
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_openssh().unwrap_or_default().trim_end())
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.fingerprint())
    }
}

/// RSA is left out of the build on purpose (advisories), DSA and security keys make no sense here.
pub(super) fn is_supported(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Ed25519 | Algorithm::Ecdsa { .. })
}
