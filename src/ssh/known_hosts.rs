//! OpenSSH's `known_hosts`: which keys a file says a host has.
//!
//! Only ever reads, and only text it is given: a key that is not in it is never learned.

use hmac::{Hmac, KeyInit, Mac};
use russh::keys::ssh_key::known_hosts::{Entry, HostPatterns, Marker};
use sha1::Sha1;

use super::key::{self, HostKey};

/// Why a host is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KnownHostsError {
    /// No usable line names it.
    #[error("no key of a supported kind is known for `{0}`")]
    Unknown(String),
    /// Every key it has was revoked.
    #[error("every key of `{0}` is revoked")]
    Revoked(String),
}

/// The keys that `text` lists for this host, without those it revokes.
///
/// Understands plain and hashed names, patterns, `[host]:port`, and `@revoked`. Lines that name a certificate
/// authority, have a key of another kind or make no sense are no help to prove this host, and are passed over.
pub fn known_host(text: &str, host: &str, port: u16) -> Result<Vec<HostKey>, KnownHostsError> {
    // OpenSSH looks a host on the usual port up by its bare name, and any other by `[host]:port` only.
    let name = if port == 22 { host.to_lowercase() } else { format!("[{}]:{port}", host.to_lowercase()) };
    let mut keys = Vec::new();
    let mut revoked = Vec::new();
    for entry in text.lines().filter_map(parse) {
        if !names(entry.host_patterns(), &name) || !key::is_supported(&entry.public_key().algorithm()) {
            continue;
        }
        let key = HostKey::from_public(entry.public_key().clone());
        match entry.marker() {
            None => keys.push(key),
            Some(Marker::Revoked) => revoked.push(key),
            Some(Marker::CertAuthority) => {}
        }
    }
    if keys.is_empty() {
        return Err(KnownHostsError::Unknown(name));
    }
    keys.retain(|key| !revoked.contains(key));
    if keys.is_empty() { Err(KnownHostsError::Revoked(name)) } else { Ok(keys) }
}

fn parse(line: &str) -> Option<Entry> {
    let line = line.trim();
    // The first fields must not run into a comment sign: base64 and names have none.
    if line.is_empty() || line.starts_with('#') { None } else { line.parse().ok() }
}

fn names(patterns: &HostPatterns, name: &str) -> bool {
    match patterns {
        HostPatterns::Patterns(patterns) => {
            // As in OpenSSH, one negated match decides, wherever in the list it stands.
            let mut is_named = false;
            for pattern in patterns {
                match pattern.strip_prefix('!') {
                    Some(negated) if matches(negated, name) => return false,
                    Some(_) => {}
                    None => is_named |= matches(pattern, name),
                }
            }
            is_named
        }
        HostPatterns::HashedName { salt, hash } => Hmac::<Sha1>::new_from_slice(salt)
            .is_ok_and(|hmac| hmac.chain_update(name).verify_slice(hash).is_ok()),
    }
}

/// Whether a pattern with `*` and `?` covers the whole name. Never worse than one length times the other.
fn matches(pattern: &str, name: &str) -> bool {
    let pattern = pattern.to_lowercase();
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            Some(_) | None => match star {
                // The last star takes one character more, and the rest of the pattern starts anew behind it.
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}
