//! Finds every process of a machine, and ends it.
//!
//! A process belongs to a machine when it descends from its supervisor, when it was started with the machine's marker
//! in its environment, when it holds a socket of the machine's private address (sshd overwrites its environment), when
//! it lives in a sandbox that is made of the machine's directory (a build has neither marker nor socket, and PID 1 for
//! a parent once its daemon was killed), or when it descends from one of those. Reads `/proc`, of which any line may be gone a moment later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal};

/// The variable that every process of a machine has in its environment, with the machine's id.
pub(super) const MARKER: &str = "NIX_BROKER_INSTANCE";

/// Environments larger than this are not searched further; ours is small, and the marker comes early.
const ENVIRONMENT_LIMIT: u64 = 1 << 20;
/// Lists of mounts are not searched further than this; a sandbox has some dozens.
const MOUNTS_LIMIT: u64 = 4 << 20;
/// How often it is looked again whether killed processes are gone.
const PAUSE: Duration = Duration::from_millis(5);

/// One process, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: i32,
    parent: i32,
    /// Ticks since boot; with the pid it names one process for ever.
    started: u64,
}

/// Ends every process of the machine but ourselves, and all that they start meanwhile; what is left at the deadline is
/// returned. With `supervisor`, that process is us, and what descends from it is to end and to be reaped too.
pub(super) fn end_all(
    id: &str,
    address: Option<SocketAddr>,
    supervisor: Option<Pid>,
    deadline: Instant,
) -> Vec<i32> {
    loop {
        let mut victims = find(id, address, supervisor);
        if victims.is_empty() {
            return Vec::new();
        }
        // Stopped first, so that none of them starts another one, or loses its children to PID 1, before it is seen.
        let mut stopped = BTreeSet::new();
        while stopped != victims {
            for &victim in victims.difference(&stopped) {
                signal(victim, Signal::STOP);
            }
            stopped = victims;
            victims = find(id, address, supervisor);
            victims.extend(&stopped);
        }
        for &victim in &victims {
            signal(victim, Signal::KILL);
        }
        reap(supervisor);
        if Instant::now() >= deadline {
            let left = find(id, address, supervisor);
            return left.into_iter().map(|process| process.pid).collect();
        }
        std::thread::sleep(PAUSE);
    }
}

/// Collects children that have ended, which the supervisor has as the one that orphans are given to.
pub(super) fn reap(supervisor: Option<Pid>) {
    if supervisor.is_some() {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
}

/// A process's start, in ticks since boot; `None` when there is no such process any more.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    read_stat(pid).map(|process| process.started)
}

/// Whether somebody listens there.
pub(super) fn is_listening(address: SocketAddr) -> bool {
    const LISTEN: &str = "0A";
    sockets(address).any(|(state, _)| state == LISTEN)
}

fn signal(process: Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    // Errors mean that it is gone, or not ours to end: the next look shows which.
    if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
        && start_time(process.pid) == Some(process.started)
    {
        let _ended_meanwhile = pidfd_send_signal(handle, signal);
    }
}

fn find(id: &str, address: Option<SocketAddr>, supervisor: Option<Pid>) -> BTreeSet<Process> {
    let table = table();
    let own = std::process::id().cast_signed();
    let inodes: BTreeSet<String> =
        address.into_iter().flat_map(|address| sockets(address).map(|(_, inode)| inode)).collect();
    let marker = format!("{MARKER}={id}");
    let host = mount_namespace(own);
    let is_of_it = |pid| {
        has_marker(pid, marker.as_bytes()) || holds_socket(pid, &inodes) || lives_in(pid, id, host.as_deref())
    };
    let mut found: BTreeSet<i32> = table.keys().copied().filter(|&pid| pid != own && is_of_it(pid)).collect();
    let supervisor = supervisor.map(Pid::as_raw_pid);
    // Parents may have any number, so one pass over the table is not enough.
    loop {
        let more: Vec<i32> = table
            .values()
            .filter(|process| process.pid != own && !found.contains(&process.pid))
            .filter(|process| found.contains(&process.parent) || Some(process.parent) == supervisor)
            .map(|process| process.pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.iter().filter_map(|pid| table.get(pid).copied()).collect()
}

/// Every process that still runs.
fn table() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| read_stat(entry.file_name().to_str()?.parse().ok()?))
        .map(|process| (process.pid, process))
        .collect()
}

/// `None` for one that has ended, even if nobody has reaped it yet.
fn read_stat(pid: i32) -> Option<Process> {
    parse_stat(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    // The second field is the program's name in parentheses, and may contain anything.
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    // Field 22, counted from 1; state was field 3.
    let started = fields.nth(17)?.parse().ok()?;
    Some(Process { pid, parent, started })
}

fn has_marker(pid: i32, marker: &[u8]) -> bool {
    let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) else { return false };
    let mut environment = Vec::new();
    // What could be read before an error still counts.
    drop(file.take(ENVIRONMENT_LIMIT).read_to_end(&mut environment));
    environment.split(|&byte| byte == 0).any(|variable| variable == marker)
}

fn holds_socket(pid: i32, inodes: &BTreeSet<String>) -> bool {
    if inodes.is_empty() {
        return false;
    }
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| {
        let inode = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.contains(inode))
    })
}

/// Whether the process has a view of files of its own, in which something of the machine's store is mounted.
fn lives_in(pid: i32, id: &str, host: Option<&Path>) -> bool {
    // One whose namespace we may not see is another user's.
    let Some(namespace) = mount_namespace(pid) else { return false };
    if Some(&*namespace) == host {
        return false;
    }
    let Ok(file) = fs::File::open(format!("/proc/{pid}/mountinfo")) else { return false };
    let mut mounts = String::new();
    drop(file.take(MOUNTS_LIMIT).read_to_string(&mut mounts));
    is_mounted(&mounts, id)
}

/// Field 4 is what is mounted, as a path within its file system: the state directory may be one of its own.
fn is_mounted(mounts: &str, id: &str) -> bool {
    let inside = format!("/{id}/root/");
    mounts.lines().any(|mount| mount.split(' ').nth(3).is_some_and(|source| source.contains(&inside)))
}

fn mount_namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// State and inode of every TCP socket of this host that is bound to this address and port.
fn sockets(address: SocketAddr) -> impl Iterator<Item = (String, String)> {
    let local = match address.ip() {
        // The kernel prints the address as the number it is in memory.
        IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()),
        IpAddr::V6(_) => String::new(),
    };
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let (Some(&bound), Some(&state), Some(&inode)) = (fields.get(1), fields.get(3), fields.get(9))
            && bound == local
            // A connection that nobody holds any more (TIME_WAIT) has no inode.
            && inode != "0"
        {
            found.push((state.to_owned(), inode.to_owned()));
        }
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn marked(id: &str, script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env(MARKER, id).stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let stat = b"12 (a) R 9 (b)) S 7 12 12 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse_stat(12, stat), Some(Process { pid: 12, parent: 7, started: 4711 }));
        assert_eq!(parse_stat(12, b"12 (gone) Z 7 12 12"), None);
        assert_eq!(parse_stat(12, b"12 (short) S 7"), None);
        assert_eq!(parse_stat(12, b""), None);
    }

    #[test]
    fn marked_processes_end_with_children_that_dropped_the_mark_and_others_live() {
        let id = format!("test-{}", std::process::id());
        let mut other = marked(&format!("{id}-other"), "exec sleep 1000");
        let mut first = marked(&id, "env -i sleep 1000 & env -i setsid sleep 1000 & wait");
        while find(&id, None, None).len() < 3 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pids: Vec<_> = find(&id, None, None).iter().map(|process| process.pid).collect();
        let waiter = std::thread::spawn(move || first.wait().unwrap());
        assert_eq!(end_all(&id, None, None, soon()), Vec::<i32>::new());
        waiter.join().unwrap();
        assert!(pids.iter().all(|&pid| start_time(pid).is_none()));
        assert!(other.try_wait().unwrap().is_none(), "a process of another machine was ended");
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_sandbox_is_known_by_what_is_mounted_in_it() {
        let mounts = "\
            812 811 0:70 / / rw - overlay overlay rw\n\
            813 812 0:70 /var/lib/nix-broker/local/local-1a/root/nix/store/x-hello.drv.chroot/root / rw - overlay o rw\n";
        assert!(is_mounted(mounts, "local-1a"));
        assert!(!is_mounted(mounts, "local-1"));
        assert!(!is_mounted(
            "812 811 0:70 / /var/lib/nix-broker/local/local-1a/root/x rw - tmpfs t rw",
            "local-1a"
        ));
        assert!(!is_mounted("", "local-1a"));
    }

    #[test]
    fn who_listens_where_is_seen() {
        let listener = std::net::TcpListener::bind("127.3.2.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(is_listening(address));
        assert!(holds_socket(
            std::process::id().cast_signed(),
            &sockets(address).map(|(_, inode)| inode).collect()
        ));
        drop(listener);
        assert!(!is_listening(address));
    }
}
