//! How busy a ready builder is: the question as a shell command, and the reading of its answer.
//!
//! Works on any Linux with a POSIX `sh`, `df`, `sed` and `nproc`; what is not there is not said, and what is said is
//! believed only as far as it makes sense. Who asks, and when, is the broker.

use std::time::Duration;

use crate::model::{Hundredths, Load, Space, Throughput};

/// Prints the facts, one `name = value` to a line. `sh -c` because a login shell may be anything.
///
/// A store may be elsewhere than `/nix/store` (`NIX_REMOTE=local?root=...`), and has its disk there. Of the network
/// only what has a device counts: bridges and tunnels would count the same bytes again.
pub const COMMAND: &str = "sh -c '\
    exec 2>/dev/null; \
    echo \"processors = $(nproc)\"; \
    read -r average rest </proc/loadavg && echo \"average = $average\"; \
    read -r name ticks </proc/stat && echo \"ticks = $ticks\"; \
    sed -n -e \"s/^MemTotal: *\\([0-9]*\\) kB/memory-total = \\1/p\" \
        -e \"s/^MemAvailable: *\\([0-9]*\\) kB/memory-free = \\1/p\" /proc/meminfo; \
    sed -n \"s/^some avg10=\\([0-9.]*\\) .*/memory-pressure = \\1/p\" /proc/pressure/memory; \
    case ${NIX_REMOTE-} in local?root=*) root=${NIX_REMOTE#local?root=}; root=${root%%&*};; *) root=;; esac; \
    echo \"disk = $(df -Pk \"$root${NIX_STORE_DIR:-/nix/store}\" | sed -n 2p)\"; \
    for d in /sys/class/net/*/device; do \
        d=${d%/device}/statistics; \
        read -r r <$d/rx_bytes && read -r s <$d/tx_bytes && in=$((in + r)) out=$((out + s)) any=yes; \
    done; \
    [ -z \"$any\" ] || echo \"network = $in $out\"'";

/// What is looked at of an answer; it has a few hundred bytes.
const MAX_BYTES: usize = 16 * 1024;
/// More processors than any machine has.
const MAX_PROCESSORS: u32 = 1 << 16;
/// No average is larger; the kernel has no more processes.
const MAX_AVERAGE: u32 = 1 << 22;

/// What a builder said at one moment; counters become shares when it is asked again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    load: Load,
    ticks: Option<Ticks>,
    bytes: Option<Counters>,
}

/// Time of all processors since the machine started, in the kernel's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

/// Bytes over the network since the machine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    received: u64,
    sent: u64,
}

/// Reads what [`COMMAND`] printed; nothing when none of it makes sense. Lines that are not ours do no harm.
pub fn parse(stdout: &[u8]) -> Option<Reading> {
    let text = String::from_utf8_lossy(stdout.get(..MAX_BYTES).unwrap_or(stdout));
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        line.map(str::trim)
    };
    let kib = |name: &str| value(name)?.parse::<u64>().ok()?.checked_mul(1024);
    let load = Load {
        processors: value("processors")
            .and_then(|count| count.parse().ok())
            .filter(|count| (1..=MAX_PROCESSORS).contains(count)),
        average: value("average").and_then(|average| hundredths(average, MAX_AVERAGE)),
        cpu: None,
        memory: kib("memory-total").zip(kib("memory-free")).and_then(|(all, free)| Space::new(all, free)),
        memory_pressure: value("memory-pressure").and_then(|percent| hundredths(percent, 100)),
        disk: value("disk").and_then(disk),
        network: None,
    };
    let reading =
        Reading { load, ticks: value("ticks").and_then(ticks), bytes: value("network").and_then(counters) };
    let is_nothing = reading.load == Load::default() && reading.ticks.is_none() && reading.bytes.is_none();
    (!is_nothing).then_some(reading)
}

impl Reading {
    /// What it says, together with one that is older by so much.
    pub fn since(&self, before: Option<(&Self, Duration)>) -> Load {
        let Some((before, passed)) = before else { return self.load.clone() };
        let cpu = self.ticks.zip(before.ticks).and_then(|(now, before)| now.busy_since(before));
        let network = self.bytes.zip(before.bytes).and_then(|(now, before)| now.rate_since(before, passed));
        Load { cpu, network, ..self.load.clone() }
    }
}

impl Ticks {
    /// Nothing when the counters went backwards: the machine has started anew.
    fn busy_since(self, before: Self) -> Option<Hundredths> {
        let (busy, all) = (self.busy.checked_sub(before.busy)?, self.all.checked_sub(before.all)?);
        let share = (u128::from(busy) * 10_000).checked_div(u128::from(all))?;
        u32::try_from(share).ok().filter(|share| *share <= 10_000).map(Hundredths)
    }
}

impl Counters {
    fn rate_since(self, before: Self, passed: Duration) -> Option<Throughput> {
        let rate = |bytes: u64| {
            let rate = (u128::from(bytes) * 1000).checked_div(passed.as_millis())?;
            u64::try_from(rate).ok()
        };
        Some(Throughput {
            received: rate(self.received.checked_sub(before.received)?)?,
            sent: rate(self.sent.checked_sub(before.sent)?)?,
        })
    }
}

/// `12.34`, no larger than this.
fn hundredths(text: &str, most: u32) -> Option<Hundredths> {
    let number: f64 = text.parse().ok()?;
    // Within these bounds the cast is exact.
    (0.0..=f64::from(most)).contains(&number).then(|| Hundredths((number * 100.0).round() as u32))
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; guests are in `user` again.
fn ticks(line: &str) -> Option<Ticks> {
    let numbers = line.split_whitespace().take(8).map(|number| number.parse().ok());
    let numbers: Vec<u64> = numbers.collect::<Option<_>>()?;
    let all = numbers.iter().try_fold(0_u64, |all, number| all.checked_add(*number))?;
    let [_, _, _, idle, waiting, ..] = numbers[..] else { return None };
    Some(Ticks { busy: all - idle - waiting, all })
}

/// A line of `df -Pk`: `/dev/vda1 102687672 51234 97413164 51% /`, where either name may have blanks in it.
fn disk(line: &str) -> Option<Space> {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(4).find_map(|words| {
        let [total, used, free, percent] = words else { return None };
        let is_percent =
            percent.strip_suffix('%').is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()));
        let kib = |number: &str| number.parse::<u64>().ok()?.checked_mul(1024);
        let (total, _, free) = (kib(total)?, kib(used)?, kib(free)?);
        if is_percent { Space::new(total, free) } else { None }
    })
}

fn counters(line: &str) -> Option<Counters> {
    let (received, sent) = line.split_once(' ')?;
    Some(Counters { received: received.parse().ok()?, sent: sent.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "processors = 16\naverage = 12.34\nticks = 100 0 50 800 40 0 10 0 0 0\n\
        memory-total = 32000000\nmemory-free = 1600000\nmemory-pressure = 20.01\n\
        disk = /dev/vda1 102687672 5123456 97413164 5% /nix store\nnetwork = 1000 5000\n";

    fn load(said: &str) -> Option<Load> {
        parse(said.as_bytes()).map(|reading| reading.since(None))
    }

    #[test]
    fn the_facts_are_read_and_what_else_a_login_prints_does_no_harm() {
        let expected = Load {
            processors: Some(16),
            average: Some(Hundredths(1234)),
            cpu: None,
            memory: Space::new(32_000_000 << 10, 1_600_000 << 10),
            memory_pressure: Some(Hundredths(2001)),
            disk: Space::new(102_687_672 << 10, 97_413_164 << 10),
            network: None,
        };
        assert_eq!(load(SAID).as_ref(), Some(&expected));
        assert_eq!(
            load(&format!("Welcome!\naverage of all\n\u{1b}[1m\n{SAID}bye")).as_ref(),
            Some(&expected)
        );
    }

    #[test]
    fn what_makes_no_sense_is_missing_and_what_is_nothing_is_none() {
        for (name, odd) in [
            ("processors", "0"),
            ("processors", "99999999"),
            ("average", "nan"),
            ("average", "-1"),
            ("average", "1e300"),
            ("memory-pressure", "100.5"),
            ("memory-free", "33000000"),
            ("memory-total", "18446744073709551615"),
            ("disk", "/dev/vda1 5 5 6 5%"),
            ("disk", "/dev/vda1 102687672 5123456 97413164 none /"),
            ("disk", ""),
        ] {
            let said: String =
                SAID.lines()
                    .map(|line| {
                        if line.starts_with(name) { format!("{name} = {odd}\n") } else { format!("{line}\n") }
                    })
                    .collect();
            let load = load(&said).unwrap();
            let is_missing = match name {
                "processors" => load.processors.is_none(),
                "average" => load.average.is_none(),
                "memory-pressure" => load.memory_pressure.is_none(),
                "disk" => load.disk.is_none(),
                _ => load.memory.is_none(),
            };
            assert!(is_missing, "{name} = {odd}: {load:?}");
        }
        for nothing in ["", "processors = \ndisk = \n", "sh: not found\n"] {
            assert_eq!(load(nothing), None, "{nothing}");
        }
        assert_eq!(parse(&[0xff; 100_000]), None);
    }

    #[test]
    fn counters_become_shares_from_one_look_to_the_next() {
        let before = parse(SAID.as_bytes()).unwrap();
        let after = SAID.replace("100 0 50 800", "160 0 65 825").replace("1000 5000", "21000 5000");
        let after = parse(after.as_bytes()).unwrap();
        let load = after.since(Some((&before, Duration::from_secs(10))));
        assert_eq!(load.cpu, Some(Hundredths(7500)));
        assert_eq!(load.network, Some(Throughput { received: 2000, sent: 0 }));
        // A machine that has started anew in between, and two looks at the same moment.
        let load = before.since(Some((&after, Duration::from_secs(10))));
        assert_eq!((load.cpu, load.network), (None, None));
        let load = before.since(Some((&before, Duration::ZERO)));
        assert_eq!((load.cpu, load.network), (None, None));
    }

    #[test]
    fn counters_that_lie_do_not_overflow() {
        let lie = |ticks: &str| parse(format!("ticks = {ticks}\nnetwork = {0} {0}\n", u64::MAX).as_bytes());
        assert_eq!(lie("1 2 3"), lie("x"));
        assert_eq!(lie(&format!("{0} {0} 0 0 0 0 0 0", u64::MAX)), lie("1"));
        let zero = parse(b"ticks = 0 0 0 0 0 0 0 0\nnetwork = 0 0\n").unwrap();
        let all = lie(&format!("{} 0 0 0 0 0 0 0", u64::MAX)).unwrap();
        let load = all.since(Some((&zero, Duration::from_millis(1))));
        assert_eq!((load.cpu, load.network), (Some(Hundredths(10_000)), None));
    }

    #[test]
    fn the_command_works_here() {
        let run = |remote: &str| {
            let shell = std::process::Command::new("sh")
                .args(["-c", COMMAND])
                .env("NIX_REMOTE", remote)
                .env("NIX_STORE_DIR", "/")
                .output();
            parse(&shell.unwrap().stdout).unwrap()
        };
        let first = run("");
        let second = run("local?root=/tmp&x=y");
        let load = second.since(Some((&first, Duration::from_secs(1))));
        assert!(load.processors.is_some() && load.average.is_some() && load.memory.is_some(), "{load:?}");
        assert!(load.disk.is_some() && first.ticks.is_some(), "{load:?}");
        // A store that is not there has no disk, and the rest is said all the same.
        let load = run("local?root=/no/such/directory").since(None);
        assert!(load.disk.is_none() && load.memory.is_some(), "{load:?}");
    }
}
