//! What a machine's directory holds, and how its sshd and its Nix are set up.
//!
//! Owns every file of it, and who is entitled to it. What runs from it is in `machine`.
//!
//! ```text
//! STATE_DIR/local/ID/
//!   owner            which broker it belongs to: PID, start, boot
//!   address          where its sshd listens
//!   host_key(.pub)   authorized_keys   sshd_config   sshd.log   machine.log
//!   etc/nix.conf     home/   tmp/
//!   root/            the store: root/nix/store, root/nix/var/nix
//! ```

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::processes::{self, MARKER};
use super::programs::Programs;
use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{LocalSpec, PoolSpec};
use crate::provider::{ProviderError, ProviderErrorKind, random};

/// Every id starts with it, so that a process of ours is known by its marker at first sight.
const ID_PREFIX: &str = "local-";
/// How much of a log is put into an error.
const LOG_TAIL: u64 = 2 << 10;

/// A machine that is ready to be started.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) id: String,
    pub(super) directory: PathBuf,
    pub(super) address: SocketAddr,
    pub(super) sshd: PathBuf,
    pub(super) search_path: String,
    pub(super) user: String,
    pub(super) host_key: String,
}

/// The directory of all machines.
pub(super) fn root(state_dir: &Path) -> PathBuf {
    state_dir.join("local")
}

/// The machines that have a directory there.
pub(super) fn ids(root: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if let Some(id) = name.to_str().filter(|name| name.starts_with(ID_PREFIX)) {
            ids.push(id.to_owned());
        }
    }
    Ok(ids)
}

/// An id that no machine had or will have.
pub(super) fn fresh_id() -> io::Result<String> {
    Ok(format!("{ID_PREFIX}{:08x}", u32::from_ne_bytes(random::bytes()?)))
}

/// The state directory ends up in configuration files and URLs that have no, or different, ways to quote.
pub(super) fn check_path(state_dir: &Path) -> Result<(), ProviderError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@,".contains(c);
    if state_dir.to_str().is_some_and(|text| text.chars().all(is_plain)) {
        return Ok(());
    }
    Err(ProviderError::new(
        ProviderErrorKind::Config,
        format!(
            "the state directory `{}` has characters other than letters, digits and `/._-+@,`, \
             which local machines cannot have",
            state_dir.display()
        ),
    ))
}

/// Whether the broker that a machine belongs to is alive, or ourselves.
pub(super) fn owner_lives(directory: &Path) -> bool {
    let Ok(owner) = fs::read_to_string(directory.join("owner")) else { return false };
    let pid = owner.split_whitespace().next().and_then(|pid| pid.parse().ok());
    pid.and_then(identity).is_some_and(|now| now == owner.trim())
}

/// Where a machine's sshd listens, if it came that far.
pub(super) fn address(directory: &Path) -> Option<SocketAddr> {
    fs::read_to_string(directory.join("address")).ok()?.trim().parse().ok()
}

/// What its sshd and its supervisor said last.
pub(super) fn log_tail(directory: &Path) -> String {
    let mut tail = String::new();
    for name in ["sshd.log", "machine.log"] {
        let Ok(mut file) = fs::File::open(directory.join(name)) else { continue };
        let length = file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let mut bytes = Vec::new();
        // A log that cannot be read says nothing, which is what is left then.
        drop(file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))));
        drop(file.take(LOG_TAIL).read_to_end(&mut bytes));
        tail += &String::from_utf8_lossy(&bytes);
    }
    let tail: Vec<&str> = tail.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if tail.is_empty() { "it says nothing".to_owned() } else { tail.join("; ") }
}

/// The supervisor's own log.
pub(super) fn open_log(directory: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).append(true).open(directory.join("machine.log"))
}

/// Fills a fresh directory with all that a machine needs.
pub(super) fn write(
    directory: &Path,
    pool: &PoolSpec,
    spec: &LocalSpec,
    client_key: &str,
) -> Result<Layout, ProviderError> {
    let id = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let failed = |what: &str| {
        let reason = format!("cannot {what} of machine `{id}`");
        move |source| ProviderError::io(reason, source)
    };
    // First of all, so that whoever finds the directory knows whether it is in use.
    let own = identity(std::process::id().cast_signed()).unwrap_or_default();
    fs::write(directory.join("owner"), own).map_err(failed("write the owner"))?;

    let programs = Programs::find(spec)?;
    let user = login_name().map_err(failed("find the user"))?;
    let address = free_address().map_err(failed("find an address"))?;
    let host_key = keygen(&programs.ssh_keygen, directory).map_err(failed("make the host key"))?;
    for folder in ["etc", "home", "tmp", "root"] {
        fs::create_dir(directory.join(folder)).map_err(failed("make a folder"))?;
    }
    let files = [
        ("address", address.to_string()),
        ("authorized_keys", client_key.trim().to_owned() + "\n"),
        ("etc/nix.conf", nix_conf(pool, spec, programs.nix_version, &user)),
    ];
    for (name, content) in files {
        fs::write(directory.join(name), content).map_err(failed("write a file"))?;
    }
    let layout = Layout {
        id: id.clone(),
        directory: directory.to_owned(),
        address,
        sshd: programs.sshd.clone(),
        search_path: programs.search_path,
        user,
        host_key,
    };
    write_sshd_config(&layout)?;
    Ok(layout)
}

/// The settings of its Nix: all that matter are set, since what this host's own Nix is set to must not shine through.
fn nix_conf(pool: &PoolSpec, spec: &LocalSpec, version: Option<(u32, u32)>, user: &str) -> String {
    let mut experimental = vec!["nix-command", "flakes", CA_DERIVATIONS];
    // An unknown one is a warning in front of every command, and this one came with 2.17.
    if version.is_some_and(|version| ((2, 17)..(2, 90)).contains(&version)) {
        experimental.push("dynamic-derivations");
    }
    // Nix adds the feature that belongs to an experimental feature by itself.
    let features: Vec<&str> = pool
        .offer
        .features
        .union(&pool.offer.mandatory)
        .map(|feature| feature.as_str())
        .filter(|&feature| feature != CA_DERIVATIONS)
        .collect();
    let mut conf = format!(
        "# Made by nix-broker for one machine, and gone with it.\n\
         sandbox = true\n\
         sandbox-fallback = false\n\
         build-users-group =\n\
         max-jobs = {jobs}\n\
         system-features = {features}\n\
         experimental-features = {experimental}\n\
         substituters =\n\
         require-sigs = false\n\
         trusted-users = {user}\n\
         builders =\n\
         auto-optimise-store = false\n\
         fsync-metadata = false\n",
        jobs = pool.slots.expected().max(1),
        features = features.join(" "),
        experimental = experimental.join(" "),
    );
    // Saves a process per build where it is understood: 2.8 fails on an empty hook, 2.25 to 2.33 do not look.
    if version.is_some_and(|version| ((2, 34)..(2, 90)).contains(&version)) {
        conf += "build-hook =\n";
    }
    let native = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let foreign: Vec<&str> =
        pool.offer.systems.iter().map(|system| system.as_str()).filter(|&system| system != native).collect();
    if !foreign.is_empty() {
        conf += &format!("extra-platforms = {}\n", foreign.join(" "));
    }
    if !spec.sandbox_paths.is_empty() {
        conf += &format!("extra-sandbox-paths = {}\n", spec.sandbox_paths.join(" "));
    }
    conf
}

fn write_sshd_config(layout: &Layout) -> Result<(), ProviderError> {
    let path = layout.directory.join("sshd_config");
    let failed = |source| ProviderError::io(format!("cannot set up sshd of machine `{}`", layout.id), source);
    if rustix::process::geteuid().is_root() {
        // Where sshd locks its unprivileged half up. Nothing is ever in it.
        fs::create_dir_all("/run/sshd").map_err(failed)?;
    }
    // Since 9.8 whoever makes too many connections is made to wait; here there is only us.
    let penalties = "PerSourcePenalties no\n";
    let config = sshd_config(layout);
    let mut complaint = String::new();
    for config in [config.clone() + penalties, config] {
        fs::write(&path, config).map_err(failed)?;
        let mut check = Command::new(&layout.sshd);
        check.arg("-t").arg("-f").arg(&path).stdin(Stdio::null()).env("PATH", &layout.search_path);
        let output = check.output().map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    }
    let reason = format!("sshd refuses its configuration for machine `{}`: {complaint}", layout.id);
    Err(ProviderError::new(ProviderErrorKind::Config, reason))
}

fn sshd_config(layout: &Layout) -> String {
    let here = layout.directory.display();
    // HOME is the machine's: neither a login shell's files nor Nix's user settings of this host are read.
    format!(
        "ListenAddress {address}:{port}\n\
         HostKey {here}/host_key\n\
         AuthorizedKeysFile {here}/authorized_keys\n\
         AuthenticationMethods publickey\n\
         PasswordAuthentication no\n\
         PermitRootLogin prohibit-password\n\
         UsePAM no\n\
         StrictModes no\n\
         PermitUserRC no\n\
         DisableForwarding yes\n\
         UseDNS no\n\
         PidFile none\n\
         PrintMotd no\n\
         LogLevel ERROR\n\
         MaxSessions 100\n\
         MaxStartups 100:30:200\n\
         SetEnv {MARKER}={id} NIX_REMOTE=local?root={here}/root NIX_CONF_DIR={here}/etc \
         NIX_USER_CONF_FILES={here}/etc/none HOME={here}/home TMPDIR={here}/tmp PATH={search_path}\n",
        address = layout.address.ip(),
        port = layout.address.port(),
        id = layout.id,
        search_path = layout.search_path,
    )
}

/// Runs `ssh-keygen`, and returns the public key it made.
fn keygen(program: &Path, directory: &Path) -> io::Result<String> {
    let mut command = Command::new(program);
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(directory.join("host_key"));
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(fs::read_to_string(directory.join("host_key.pub"))?.trim().to_owned())
}

/// The name of the user we are, from wherever this host has its users.
fn login_name() -> io::Result<String> {
    let output = Command::new("id").arg("-un").stdin(Stdio::null()).output()?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if name.is_empty() || !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(name)
}

/// A port that is free on an address of 127.0.0.0/8 that nobody else is likely to use.
fn free_address() -> io::Result<SocketAddr> {
    let [a, b, c, _] = random::bytes()?;
    let ip = Ipv4Addr::new(127, 64 | a, b, c.clamp(1, 254));
    TcpListener::bind((ip, 0))?.local_addr()
}

/// What tells a process from all others, before and after it, across reboots.
fn identity(pid: i32) -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Some(format!("{pid} {} {}", processes::start_time(pid)?, boot.trim()))
}
