//! The `[[pool.hosts]]` tables: machines that exist already.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::host_key::{self, KnownHosts};
use super::problem::{Problems, quote};
use super::section::{Section, Text};
use crate::model::HostSpec;

const DEFAULT_PORT: u16 = 22;

/// Reads every host of one pool; what is wrong is in `problems`.
pub(super) fn read_all(
    sections: Vec<Section<'_>>,
    read: &dyn Fn(&Path) -> io::Result<String>,
    problems: &mut Problems,
) -> Vec<HostSpec> {
    let mut seen = BTreeSet::new();
    let mut hosts = Vec::new();
    for section in sections {
        let host = read_host(section, &mut seen, read, problems);
        hosts.push(host);
    }
    hosts
}

fn read_host(
    mut section: Section<'_>,
    seen: &mut BTreeSet<(String, u16)>,
    read: &dyn Fn(&Path) -> io::Result<String>,
    problems: &mut Problems,
) -> HostSpec {
    let address = read_address(&mut section, problems);
    let port = section.number("port", 1..=u32::from(u16::MAX), problems);
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(DEFAULT_PORT);
    if let Some(address) = &address
        && !seen.insert((address.clone(), port))
    {
        let message = format!("`{address}` is listed twice in this pool");
        section.error("address", message, problems);
    }
    let user = read_user(&mut section, problems);
    let identity_file = section.absolute_path("identity-file", problems);
    let host_keys = read_host_keys(&mut section, address.as_deref(), port, read, problems);
    section.finish(problems);
    HostSpec {
        address: address.unwrap_or_default(),
        port,
        user: user.unwrap_or_default(),
        host_keys,
        identity_file,
    }
}

fn read_address(section: &mut Section<'_>, problems: &mut Problems) -> Option<String> {
    if !section.has("address") {
        section.error("address", "missing: the name or address of the machine", problems);
    }
    let text = section.text("address", problems)?;
    let is_name = !text.is_empty()
        && !text.starts_with('-')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    // A zone (`fe80::1%eth0`) is no part of an address to the standard library.
    let is_address = text.split('%').next().is_some_and(|bare| bare.parse::<IpAddr>().is_ok())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ".:%_-".contains(c));
    if is_name || is_address {
        return Some(text.to_owned());
    }
    let hint = if text.contains('@') {
        "; the user has a key of its own, `user`"
    } else if text.contains("//") {
        "; it is no address of a web page"
    } else if text.contains(':') {
        "; the port has a key of its own, `port`"
    } else {
        ""
    };
    section.error("address", format!("{} is neither a name nor an address{hint}", quote(text)), problems);
    None
}

fn read_user(section: &mut Section<'_>, problems: &mut Problems) -> Option<String> {
    if !section.has("user") {
        let message = "missing: the user to log in as, whom its Nix must trust (`trusted-users`)";
        section.error("user", message, problems);
    }
    let text = section.text("user", problems)?;
    let is_valid = !text.is_empty()
        && !text.starts_with('-')
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "@:/".contains(c));
    if !is_valid {
        section.error("user", format!("{} is not a user name", quote(text)), problems);
    }
    is_valid.then(|| text.to_owned())
}

/// The keys this host may show. A host without one is an error: the first connection is trusted no more than any other.
fn read_host_keys(
    section: &mut Section<'_>,
    address: Option<&str>,
    port: u16,
    read: &dyn Fn(&Path) -> io::Result<String>,
    problems: &mut Problems,
) -> Vec<String> {
    let listed = section.texts("host-keys", problems);
    let file = section.absolute_path("known-hosts-file", problems);
    match (&listed, section.has("known-hosts-file")) {
        (None, false) if !section.has("host-keys") => {
            let message = "missing: a host is never trusted at first sight; \
                           its key is on that machine in `/etc/ssh/ssh_host_ed25519_key.pub`";
            section.error("host-keys", message, problems);
        }
        (Some(_), true) => {
            let message = "given together with `host-keys`; one of them is enough";
            section.error("known-hosts-file", message, problems);
        }
        (Some(keys), false) if keys.is_empty() => {
            section.error("host-keys", "empty: a host is never trusted at first sight", problems);
        }
        (Some(_) | None, _) => {}
    }

    let mut keys = Vec::new();
    for Text { text, line } in listed.unwrap_or_default() {
        match host_key::parse(text) {
            Ok(key) => keys.push(key),
            Err(why) => problems.error(line, section.key("host-keys"), why),
        }
    }
    if let (Some(file), Some(address)) = (file, address) {
        match read(&file) {
            Err(error) => {
                let message = format!("cannot read `{}`: {error}", file.display());
                section.error("known-hosts-file", message, problems);
            }
            Ok(text) => match KnownHosts::parse(&text).keys_of(address, port) {
                Ok(found) => keys.extend(found),
                Err(why) => {
                    let message = format!("`{}` {why}", file.display());
                    section.error("known-hosts-file", message, problems);
                }
            },
        }
    }
    keys.sort();
    keys.dedup();
    keys
}
