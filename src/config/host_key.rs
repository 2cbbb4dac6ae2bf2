//! Public host keys in OpenSSH's form, one by one and in `known_hosts` files.
//!
//! Only the form is checked, which catches keys that were cut off or mixed up; whether a host shows one of them is
//! checked by `ssh` when it connects.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

/// Key types the SSH client can verify.
const SUPPORTED: [&str; 4] =
    ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"];

/// Reads one key, `TYPE BASE64 [COMMENT]`, and gives it back without the comment.
pub(super) fn parse(text: &str) -> Result<String, String> {
    if text.contains("PRIVATE KEY") {
        return Err("this is a private key; the host key is in the file that ends in `.pub`".to_owned());
    }
    let mut words = text.split_ascii_whitespace();
    let (Some(kind), Some(data)) = (words.next(), words.next()) else {
        return Err("not a key of the form \"ssh-ed25519 AAAA...\"".to_owned());
    };
    if !SUPPORTED.contains(&kind) {
        return Err(match kind {
            "ssh-rsa" => {
                "RSA host keys are not supported; use the machine's `/etc/ssh/ssh_host_ed25519_key.pub`"
                    .to_owned()
            }
            _ if words.next().is_some_and(|third| third.starts_with("AAAA")) => {
                "a line of a `known_hosts` file; leave the host's name out".to_owned()
            }
            _ => format!("not a key of a supported type ({})", SUPPORTED.join(", ")),
        });
    }
    match decode_base64(data) {
        Some(bytes) if is_key_of(kind, &bytes) => Ok(format!("{kind} {data}")),
        _ => Err(format!("the `{kind}` key is damaged or cut off; copy the whole line")),
    }
}

/// The keys of a `known_hosts` file.
#[derive(Debug)]
pub(super) struct KnownHosts<'t> {
    entries: Vec<Entry<'t>>,
}

#[derive(Debug)]
struct Entry<'t> {
    is_revoked: bool,
    names: Names<'t>,
    key: &'t str,
}

/// Whom a line is about.
#[derive(Debug)]
enum Names<'t> {
    /// Patterns with commas between them.
    Plain(&'t str),
    /// One name, as OpenSSH hides it (`HashKnownHosts`): HMAC-SHA1 with a salt of its own.
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

impl<'t> Names<'t> {
    fn parse(text: &'t str) -> Option<Self> {
        let Some(hashed) = text.strip_prefix("|1|") else { return Some(Self::Plain(text)) };
        let (salt, hash) = hashed.split_once('|')?;
        Some(Self::Hashed { salt: decode_base64(salt)?, hash: decode_base64(hash)? })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Plain(patterns) => is_for(patterns, name),
            Self::Hashed { salt, hash } => Hmac::<Sha1>::new_from_slice(salt)
                .is_ok_and(|hmac| hmac.chain_update(name.to_ascii_lowercase()).verify_slice(hash).is_ok()),
        }
    }
}

impl<'t> KnownHosts<'t> {
    pub(super) fn parse(text: &'t str) -> Self {
        let mut known = Self { entries: Vec::new() };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (marker, rest) = match line.strip_prefix('@').and_then(|rest| rest.split_once([' ', '\t'])) {
                Some((marker, rest)) => (Some(marker), rest.trim_start()),
                None => (None, line),
            };
            // A certificate authority signs host keys; our client does not check signatures of that kind.
            if marker.is_some_and(|marker| marker != "revoked") {
                continue;
            }
            let Some((names, key)) = rest.split_once([' ', '\t']) else { continue };
            if let Some(names) = Names::parse(names) {
                known.entries.push(Entry { is_revoked: marker.is_some(), names, key: key.trim_start() });
            }
        }
        known
    }

    /// The usable keys of this host, or why there is none, as what the file does.
    pub(super) fn keys_of(&self, address: &str, port: u16) -> Result<Vec<String>, String> {
        let name = if port == 22 { address.to_owned() } else { format!("[{address}]:{port}") };
        let matching: Vec<&Entry<'_>> = self.entries.iter().filter(|entry| entry.names.has(&name)).collect();
        let revoked: Vec<String> = matching
            .iter()
            .filter(|entry| entry.is_revoked)
            .filter_map(|entry| parse(entry.key).ok())
            .collect();
        let mut keys = Vec::new();
        let mut complaint = None;
        for entry in matching.iter().filter(|entry| !entry.is_revoked) {
            match parse(entry.key) {
                Ok(key) if revoked.contains(&key) => complaint = Some("its key is revoked".to_owned()),
                Ok(key) => keys.push(key),
                Err(why) => complaint = Some(why),
            }
        }
        if !keys.is_empty() {
            return Ok(keys);
        }
        Err(match complaint {
            Some(why) => format!("has no usable key of `{name}`: {why}"),
            None => format!("does not have `{name}`; a host is never trusted at first sight"),
        })
    }
}

/// Whether one of the patterns matches, and none that starts with `!`.
fn is_for(patterns: &str, name: &str) -> bool {
    let mut found = false;
    for pattern in patterns.split(',') {
        match pattern.strip_prefix('!') {
            Some(excluded) if matches(excluded.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => found |= matches(pattern.as_bytes(), name.as_bytes()),
        }
    }
    found
}

/// `*` and `?` as in sshd(8); letters in either case, as host names are.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // The last star seen, and how much of the name it has taken so far: going back to it is enough.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c.eq_ignore_ascii_case(&name[n]) => {
                p += 1;
                n += 1;
            }
            Some(_) | None => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Whether these bytes are the whole of a public key: length-prefixed fields up to the very end, the type first.
fn is_key_of(kind: &str, mut bytes: &[u8]) -> bool {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return false };
        let length = u32::from_be_bytes(*length) as usize;
        let Some((field, rest)) = rest.split_at_checked(length) else { return false };
        fields.push(field);
        bytes = rest;
    }
    let curve = kind.strip_prefix("ecdsa-sha2-").map(str::as_bytes);
    match (fields.as_slice(), curve) {
        ([name, key], None) => *name == kind.as_bytes() && key.len() == 32,
        ([name, named_curve, point], Some(curve)) => {
            *name == kind.as_bytes() && *named_curve == curve && !point.is_empty()
        }
        _ => false,
    }
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let unpadded = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - unpadded.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(unpadded.len() / 4 * 3 + 2);
    let (mut bits, mut n_bits) = (0_u32, 0);
    for c in unpadded.bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(digit)) & 0xffff;
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits & 0xff) as u8);
        }
    }
    Some(bytes)
}
