//! The user-data of an instance: `user-data.sh` with this launch's values in it.
//!
//! Owns which values may stand there. Each is checked so that it is a value and nothing else, wherever it stands: in a
//! here-document that the shell does not look into, or as a number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::Feature;

use super::cache::BootCache;
use super::ready;

/// EC2 takes no more, before base64.
pub const MAX_BYTES: usize = 16 * 1024;

const TEMPLATE: &str = include_str!("user-data.sh");
/// What ends a machine that nobody needs. Stands alone, so that images can carry it too.
pub const DEAD_MAN: &str = include_str!("dead-man.sh");

/// With something building, a machine waits this many leases for the broker: a suspended laptop may come back.
const LEASES_WHILE_BUSY: u32 = 4;
/// A lease, or an idle limit, that is shorter than a few heartbeats would end machines in use.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(90 * 24 * 3600);

/// What one instance is to be.
#[derive(Clone)]
pub struct BootSpec<'a> {
    /// Its host key, as OpenSSH writes it into a file. Secret.
    pub host_key_private: &'a str,
    /// The public half: `ssh-ed25519 AAAA...`.
    pub host_key_public: &'a str,
    /// Who may log in, as root: a line of `authorized_keys` without options.
    pub client_key: &'a str,
    /// The `system-features` of its Nix, outright.
    pub system_features: &'a BTreeSet<Feature>,
    /// How long it goes on when it hears nothing of the broker and builds nothing; four times that when it builds.
    pub lease: Duration,
    /// How long it goes on when it hears of the broker and has nothing to do. More than the broker's own idle window.
    pub idle: Duration,
    /// How long it may be up at all.
    pub hard_limit: Duration,
    /// Builds at a time: so many build users there will be.
    pub build_users: u16,
    /// Further settings for its `nix.conf`.
    pub nix_settings: &'a [(String, String)],
    /// A binary cache that keeps what was built.
    pub cache: Option<BootCache<'a>>,
}

impl fmt::Debug for BootSpec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootSpec")
            .field("host_key_public", &self.host_key_public)
            .field("system_features", &self.system_features)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// Why there is no user-data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserDataError {
    /// The private key is never shown.
    #[error("the private host key of the instance is not an OpenSSH private key")]
    HostKey,
    /// Not a key and a comment at most.
    #[error("`{0}` is not a public key (`ssh-ed25519 AAAA...`)")]
    PublicKey(String),
    /// Nix would read it as several, or as something else.
    #[error("`{0}` cannot be a system feature: letters, digits and `-_.+` are allowed")]
    Feature(String),
    /// Nix would read it as something else.
    #[error("`{0}` cannot be a line of nix.conf: use one line without `#` or control characters")]
    NixSetting(String),
    /// One of the limits that end the machine would not work.
    #[error("the {name} of an instance cannot be {} s: choose 60 s to 90 days", duration.as_secs())]
    Limit {
        /// `lease`.
        name: &'static str,
        /// What was asked for.
        duration: Duration,
    },
    /// Not a store, or one that only this machine has.
    #[error(
        "`{0}` cannot be the cache of builders: use a URL such as `s3://bucket?region=eu-central-1` or `https://...`"
    )]
    CacheUrl(String),
    /// Nix would trust nothing.
    #[error(
        "`{0}` is not the public key of a cache (`name:base64`, as `nix key convert-secret-to-public` prints it)"
    )]
    CachePublicKey(String),
    /// The key is never shown.
    #[error(
        "the secret key of the cache is not one line `name:base64`, as `nix key generate-secret` prints it"
    )]
    CacheSecretKey,
    /// Builders could not sign what they put into the cache.
    #[error("the secret key of the cache cannot be read from `{}` ({kind})", path.display())]
    CacheSecretKeyFile {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        kind: std::io::ErrorKind,
    },
    /// EC2 refuses it.
    #[error("the user-data has {0} bytes and EC2 takes {MAX_BYTES}: use fewer features or nix.conf settings")]
    TooLong(usize),
    /// Template and code are not of the same version.
    #[error("the template of the user-data has no value for `{0}`")]
    Template(String),
}

/// The text that the instance is launched with. It holds the host key, so it is a secret.
pub fn render(spec: &BootSpec<'_>) -> Result<String, UserDataError> {
    let lease = limit("lease", spec.lease)?;
    let (mut settings, mut cache_step) = (spec.nix_settings.to_vec(), String::new());
    if let Some(cache) = &spec.cache {
        settings.extend(cache.nix_settings()?);
        cache_step = cache.step()?;
    }
    let values = BTreeMap::from([
        ("HOST_KEY_PRIVATE", one_line(spec.host_key_private)?),
        ("HOST_KEY_PUBLIC", public_key(spec.host_key_public)?),
        ("CLIENT_KEY", public_key(spec.client_key)?),
        ("DEAD_MAN", DEAD_MAN.trim_end().to_owned()),
        ("LEASE", lease.to_string()),
        ("LEASE_BUSY", (lease * u64::from(LEASES_WHILE_BUSY)).to_string()),
        ("IDLE", limit("idle limit", spec.idle)?.to_string()),
        ("HARD", limit("hard limit", spec.hard_limit)?.to_string()),
        ("BUILD_USERS", spec.build_users.to_string()),
        ("NIX_CONF", nix_conf(&settings)?),
        ("CACHE", cache_step),
        ("FEATURES", features(spec.system_features)?),
        ("VERSION", ready::VERSION.to_string()),
    ]);
    let text = fill(TEMPLATE, &values)?;
    if text.len() > MAX_BYTES {
        return Err(UserDataError::TooLong(text.len()));
    }
    Ok(text)
}

/// In one pass, so that a value cannot bring in another one.
fn fill(template: &str, values: &BTreeMap<&str, String>) -> Result<String, UserDataError> {
    let mut text = String::with_capacity(MAX_BYTES);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('@') {
        text.push_str(before);
        let name_length = after.find(|c: char| !c.is_ascii_uppercase() && c != '_').unwrap_or(after.len());
        let (name, tail) = after.split_at(name_length);
        match tail.strip_prefix('@') {
            Some(tail) if !name.is_empty() => {
                let value = values.get(name).ok_or_else(|| UserDataError::Template(name.to_owned()))?;
                text.push_str(value);
                rest = tail;
            }
            Some(_) | None => {
                text.push('@');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    Ok(text)
}

/// NixOS reads the private key from one line, with `|` for the ends of its lines.
fn one_line(pem: &str) -> Result<String, UserDataError> {
    let lines: Vec<&str> = pem.trim().lines().map(str::trim).collect();
    let [begin, body @ .., end] = lines.as_slice() else { return Err(UserDataError::HostKey) };
    let is_base64 = |line: &&str| !line.is_empty() && line.bytes().all(is_base64);
    let is_key = *begin == "-----BEGIN OPENSSH PRIVATE KEY-----"
        && *end == "-----END OPENSSH PRIVATE KEY-----"
        && !body.is_empty()
        && body.iter().all(is_base64);
    if is_key { Ok(lines.join("|")) } else { Err(UserDataError::HostKey) }
}

/// Algorithm and key; a comment is dropped, and options make it something else.
fn public_key(text: &str) -> Result<String, UserDataError> {
    let refuse = || UserDataError::PublicKey(text.chars().take(60).collect());
    if text.trim().contains(['\n', '\r']) {
        return Err(refuse());
    }
    let mut words = text.split_whitespace();
    let (Some(algorithm), Some(key)) = (words.next(), words.next()) else { return Err(refuse()) };
    let known = algorithm == "ssh-ed25519" || algorithm.starts_with("ecdsa-sha2-nistp");
    let is_name = algorithm.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if known && is_name && key.len() >= 40 && key.bytes().all(is_base64) {
        Ok(format!("{algorithm} {key}"))
    } else {
        Err(refuse())
    }
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

fn limit(name: &'static str, duration: Duration) -> Result<u64, UserDataError> {
    if (SHORTEST..=LONGEST).contains(&duration) {
        Ok(duration.as_secs())
    } else {
        Err(UserDataError::Limit { name, duration })
    }
}

fn features(wanted: &BTreeSet<Feature>) -> Result<String, UserDataError> {
    let mut features = Vec::new();
    for feature in wanted {
        let feature = feature.as_str();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+');
        if feature.is_empty() || feature.len() > 64 || !feature.bytes().all(is_plain) {
            return Err(UserDataError::Feature(feature.chars().take(64).collect()));
        }
        features.push(feature);
    }
    Ok(features.join(" "))
}

fn nix_conf(settings: &[(String, String)]) -> Result<String, UserDataError> {
    let mut lines = vec![
        "trusted-users = root".to_owned(),
        "max-jobs = auto".to_owned(),
        // It is where builds are handed to.
        "builders =".to_owned(),
        "builders-use-substitutes = true".to_owned(),
    ];
    for (name, value) in settings {
        let line = format!("{name} = {value}");
        let in_name = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let is_name = !name.is_empty() && name.bytes().all(in_name);
        if !is_name || value.contains('#') || value.chars().any(char::is_control) {
            return Err(UserDataError::NixSetting(
                line.chars().filter(|c| !c.is_control()).take(80).collect(),
            ));
        }
        lines.push(line);
    }
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests;
