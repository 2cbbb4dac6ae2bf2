//! A whole machine for one test: real nix-daemon, real sshd, an ordinary user, and our two binaries in place.
//!
//! Owns the life of the host (tests/lab/host.sh does the work) and the waits: always on a state, always with a deadline.
//! What is tested is in the files beside it.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on says so by panicking")]

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The Debian releases whose Nix the product is tested with: 2.8, 2.26 and 2.34.
pub(crate) const RELEASES: [&str; 3] = ["bookworm", "trixie", "forky"];

/// Runs a test on every release, on a fresh machine each. `NIX_BROKER_RELEASES=forky` narrows it for one's own use.
pub(crate) fn on_every_release(config: &str, test: impl Fn(&mut Lab)) {
    on_each_of(&RELEASES, |release| test(&mut Lab::start(release, config)));
}

/// Runs a test for each of these releases, narrowed in the same way; the test makes its own machine.
pub(crate) fn on_each_of(releases: &[&'static str], test: impl Fn(&'static str)) {
    let wanted = std::env::var("NIX_BROKER_RELEASES").unwrap_or_else(|_| releases.join(" "));
    let chosen: Vec<_> = releases.iter().copied().filter(|release| wanted.contains(release)).collect();
    assert!(!chosen.is_empty(), "NIX_BROKER_RELEASES=`{wanted}` names none of {releases:?}");
    for release in chosen {
        note(release);
        test(release);
    }
}

/// A line for whoever reads the test's output.
pub(crate) fn note(text: &str) {
    eprintln!("--- {text}");
}

/// Runs a test on this release alone, for what takes long and depends little on the version of Nix: every release has a
/// share of it. `NIX_BROKER_RELEASES` overrules it, so that each can be tried on all.
pub(crate) fn on_release(release: &'static str, config: &str, test: impl Fn(&mut Lab)) {
    on_each_of(&only(release), |release| test(&mut Lab::start(release, config)));
}

/// For [`on_each_of`]: this release, unless `NIX_BROKER_RELEASES` says otherwise.
pub(crate) fn only(release: &'static str) -> Vec<&'static str> {
    if std::env::var_os("NIX_BROKER_RELEASES").is_some() { RELEASES.to_vec() } else { vec![release] }
}

/// Generous: these machines are slow and shared, and a deadline only bounds a failure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);

const HOOK: &str = "/usr/local/bin/broker-hook";
const CONFIG_PATH: &str = "/etc/nix-broker/config.toml";
const SOCKET: &str = "/run/nix-broker/broker.sock";
const STATE_DIR: &str = "/var/lib/nix-broker";

/// One pool on the `local` provider, with a short idle window.
pub(crate) const LOCAL_POOL: &str = r#"
[[pool]]
name = "local"
slots = 4
max-builders = 2
idle-timeout = "3s"
launch-timeout = "60s"
[pool.local]
"#;

/// A machine with a broker. Dropped, it is gone with everything that ran in it.
pub(crate) struct Lab {
    name: String,
    release: &'static str,
    script: PathBuf,
    broker: Option<Child>,
    /// `NAME=VALUE`, for the broker.
    environment: Vec<String>,
}

impl Lab {
    /// A machine of this release, with hook, configuration, broker and nix-daemon in place and running.
    pub(crate) fn start(release: &'static str, config: &str) -> Self {
        let mut lab = Self::bare(release, config);
        lab.start_broker();
        lab.configure_nix("");
        lab
    }

    /// The same without a running broker or nix-daemon.
    pub(crate) fn bare(release: &'static str, config: &str) -> Self {
        Self::made(release, config, None)
    }

    /// The same in the network of another machine, which must outlive it.
    pub(crate) fn beside(neighbour: &Self, release: &'static str) -> Self {
        Self::made(release, "", Some(&neighbour.name))
    }

    fn made(release: &'static str, config: &str, neighbour: Option<&str>) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let lab =
            Self { name, release, script: root.join("tests/lab/host.sh"), broker: None, environment: vec![] };
        let words: Vec<&str> = ["up", &lab.name, release].into_iter().chain(neighbour).collect();
        let up = lab.host(&words);
        assert!(up.status.success(), "no test host:\n{}", text(&up));
        lab.put(Path::new(env!("CARGO_BIN_EXE_broker")), "/usr/local/bin/broker");
        lab.put(Path::new(env!("CARGO_BIN_EXE_broker-hook")), HOOK);
        lab.write(CONFIG_PATH, config);
        for file in ["lib.nix", "graph.nix", "wide.nix", "kinds.nix", "shapes.nix", "phases.nix", "tuned.nix"]
        {
            lab.put(&root.join("tests/nix").join(file), &format!("/t/{file}"));
        }
        lab.sh("mkdir -p /t/bin && cp /bin/busybox /t/bin/ && mkdir -p /run/nix-broker && chown nix-broker /run/nix-broker && chmod 755 /run/nix-broker /t");
        lab
    }

    /// Sets `build-hook` as the README says, with more lines of nix.conf, and starts or restarts nix-daemon.
    pub(crate) fn configure_nix(&self, extra: &str) {
        self.sh(&format!(
            "sed -i '/^# test/,$d' /etc/nix/nix.conf
            cat >> /etc/nix/nix.conf <<'E'\n# test\nbuild-hook = {HOOK}\nmax-jobs = 0\n{extra}\nE
            mkdir -p /etc/xdg/nix && echo 'build-hook = {HOOK}' > /etc/xdg/nix/nix.conf && chmod 400 /etc/xdg/nix/nix.conf"
        ));
        self.start_daemon(&[]);
    }

    /// Starts or restarts nix-daemon with these variables (`NAME=VALUE`) in its environment.
    pub(crate) fn start_daemon(&self, environment: &[String]) {
        let mut words = vec!["daemon", &self.name];
        words.extend(environment.iter().map(String::as_str));
        let daemon = self.host(&words);
        assert!(daemon.status.success(), "nix-daemon: {}", text(&daemon));
    }

    /// Every broker that starts from now on has these variables (`NAME=VALUE`).
    pub(crate) fn set_environment(&mut self, variables: Vec<String>) {
        self.environment = variables;
    }

    /// Starts the broker as its own user and waits until it answers.
    pub(crate) fn start_broker(&mut self) {
        const SERVE: &str =
            "exec broker serve --config /etc/nix-broker/config.toml 2>>/var/lib/nix-broker/broker.log";
        let mut words = vec!["env"];
        words.extend(self.environment.iter().map(String::as_str));
        words.extend(["sh", "-c", SERVE]);
        let mut command = self.command("nix-broker", &words);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        self.broker = Some(child);
        self.wait("the broker to answer", || self.try_status().is_some());
    }

    /// SIGTERM, and its exit status.
    pub(crate) fn stop_broker(&mut self) -> std::process::ExitStatus {
        self.sh("kill $(pgrep -x broker -u nix-broker -o)");
        self.broker_exit()
    }

    /// SIGKILL.
    pub(crate) fn kill_broker(&mut self) {
        self.sh("kill -9 $(pgrep -x broker -u nix-broker -o)");
        let _killed = self.broker_exit();
    }

    /// Waits for the broker's own end.
    pub(crate) fn broker_exit(&mut self) -> std::process::ExitStatus {
        let mut child = self.broker.take().unwrap();
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the broker did not end\n{}", self.diagnosis());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A command in the machine.
    pub(crate) fn command(&self, user: &str, words: &[&str]) -> Command {
        let mut command = Command::new(&self.script);
        command.args(["in", &self.name, "--user", user, "--env", "NIX_BROKER_LOG=nix_broker=debug", "--"]);
        command.args(words);
        command
    }

    /// Runs a script as root; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.run("root", &["sh", "-ec", script])
    }

    /// Runs a command; it must succeed. Returns its standard output.
    pub(crate) fn run(&self, user: &str, words: &[&str]) -> String {
        let output = self.output(user, words);
        assert!(output.status.success(), "{words:?}: {}\n{}", text(&output), self.diagnosis());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs a command to its end, within the deadline.
    pub(crate) fn output(&self, user: &str, words: &[&str]) -> Output {
        self.output_within(DEADLINE, user, words)
    }

    /// Runs a command to its end, within this deadline.
    pub(crate) fn output_within(&self, deadline: Duration, user: &str, words: &[&str]) -> Output {
        let child = self
            .command(user, words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let (ended, timeout) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            let expired = timeout.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
            if expired {
                let _dead = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
            expired
        });
        let output = child.wait_with_output().unwrap();
        drop(ended);
        let expired = watchdog.join().unwrap();
        assert!(
            !expired,
            "{words:?} did not end within {deadline:?}\n{}\n{}",
            text(&output),
            self.diagnosis()
        );
        output
    }

    /// `nix-build` of a file of tests/nix as this user, without a result link.
    pub(crate) fn nix_build(&self, user: &str, words: &[&str]) -> Output {
        self.output(user, &[&["nix-build", "--no-out-link"], words].concat())
    }

    /// The same; it must succeed. Returns the output paths.
    pub(crate) fn build(&self, user: &str, words: &[&str]) -> Vec<String> {
        self.run(user, &[&["nix-build", "--no-out-link"], words].concat())
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// `broker status --json`, if the broker answers.
    pub(crate) fn try_status(&self) -> Option<Value> {
        let output = self.output("root", &["broker", "status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// `broker status --json`.
    pub(crate) fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|| panic!("the broker does not answer\n{}", self.diagnosis()))
    }

    /// The number of builds in this phase.
    pub(crate) fn builds_in(&self, phase: &str) -> usize {
        self.status()["builds"].as_array().unwrap().iter().filter(|build| build["phase"] == phase).count()
    }

    /// The number of builds that have ended in this way since the broker started.
    pub(crate) fn ended(&self, how: &str) -> u64 {
        self.status()["ended"][how].as_u64().unwrap()
    }

    /// Waits for a state.
    pub(crate) fn wait(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let end = Instant::now() + DEADLINE;
        while !reached() {
            assert!(Instant::now() < end, "waited in vain for {what}\n{}", self.diagnosis());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether a process runs whose command line matches. Not by a shell, which would match itself.
    pub(crate) fn runs(&self, pattern: &str) -> bool {
        self.output("root", &["pgrep", "-f", "--", pattern]).status.success()
    }

    /// Sends a signal to every process that matches; there must be one.
    pub(crate) fn signal(&self, signal: &str, options: &[&str]) {
        self.run("root", &[&["pkill", signal], options].concat());
    }

    /// Waits until no builder is left, and checks that nothing else is: slot, process, directory, lock, invalid path.
    pub(crate) fn assert_all_is_over(&self) {
        self.wait("the builders to end", || self.status()["builders"].as_array().unwrap().is_empty());
        let status = self.status();
        for pool in status["pools"].as_array().unwrap() {
            assert_eq!(pool["slots-used"], 0, "{status:#}");
            assert_eq!(pool["queued"], 0, "{status:#}");
        }
        for build in status["builds"].as_array().unwrap() {
            let phase = build["phase"].as_str().unwrap();
            assert!(["succeeded", "failed", "cancelled"].contains(&phase), "{status:#}");
        }
        self.assert_nothing_left();
    }

    /// No process of a builder or a hook, no directory of a builder, no lock, no half-written path, and a store that
    /// verifies without a word of complaint.
    pub(crate) fn assert_nothing_left(&self) {
        let strays = "pgrep -a -f 'sshd|nix-daemon --stdio|broker-hook|local-machine|build-remote|sleep 1000' | grep -v pgrep || true";
        self.wait("every process of builds and builders to end", || self.sh(strays).is_empty());
        let dirs = self
            .sh("ls -A /var/lib/nix-broker/local /var/lib/nix-broker/spool 2>/dev/null | grep -v : || true");
        assert_eq!(dirs, "", "files of builders or builds are left");
        assert_eq!(
            // Stock Nix keeps lock files of machine lines for ever; ours are of one build each, and named by a process.
            self.sh("ls -A /nix/var/nix/current-load 2>/dev/null | grep _proc_ || true"),
            "",
            "lock files of importers are left"
        );
        let held = self.sh("mkdir -p /nix/var/nix/current-load; find /nix/store /nix/var/nix/current-load -maxdepth 1 -type f \\( -name '*.lock' -o -path '*/current-load/*' \\) ! -exec flock -n {} true \\; -print");
        assert_eq!(held, "", "locks are held");
        // Whatever is in the store is registered: an entry that is not is half a path.
        let invalid = self.sh("ls -A /nix/store | grep -v -e '^\\.links$' -e '\\.lock$' | sed 's,^,/nix/store/,' | xargs -r nix-store --check-validity --print-invalid");
        assert_eq!(invalid, "", "half-written paths are left");
        let verify = self.output("root", &["nix-store", "--verify", "--check-contents"]);
        let said = text(&verify);
        let complains = ["error", "warning", "modified"].iter().any(|word| said.contains(word));
        assert!(verify.status.success() && !complains, "{said}\n{}", self.diagnosis());
    }

    /// What a person would look at first when a test fails.
    pub(crate) fn diagnosis(&self) -> String {
        let script = "echo '--- broker.log'; tail -n 60 /var/lib/nix-broker/broker.log; echo '--- nix-daemon.log'; tail -n 20 /var/log/nix-daemon.log; echo '--- ps'; ps axfo pid,ppid,user,stat,args | tail -n 60; for l in /var/lib/nix-broker/local/*/*log; do echo \"--- $l\"; tail -n 20 $l; done; echo '--- status'; timeout 5 broker status";
        let output =
            Command::new(&self.script).args(["in", &self.name, "--", "sh", "-c", script]).output().unwrap();
        format!("release {}, host {}\n{}", self.release, self.name, text(&output))
    }

    /// Writes a file.
    pub(crate) fn write(&self, path: &str, content: &str) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
        self.put(file.path(), path);
    }

    /// Writes a program.
    pub(crate) fn install(&self, path: &str, content: &str) {
        self.write(path, content);
        self.sh(&format!("chmod 755 {path}"));
    }

    /// Copies a directory of this machine, links and all.
    pub(crate) fn unpack(&self, directory: &Path, path: &str) {
        let pack =
            Command::new("tar").arg("-C").arg(directory).args(["-c", "."]).stdout(Stdio::piped()).spawn();
        let mut pack = pack.unwrap();
        let script = format!("mkdir -p {path} && tar -C {path} -x");
        let mut unpack = self.command("root", &["sh", "-ec", &script]);
        assert!(unpack.stdin(pack.stdout.take().unwrap()).status().unwrap().success(), "unpack {path}");
        assert!(pack.wait().unwrap().success(), "pack {}", directory.display());
    }

    /// Copies a file of this machine.
    pub(crate) fn put(&self, file: &Path, path: &str) {
        let put = self.host(&["put", &self.name, file.to_str().unwrap(), path]);
        assert!(put.status.success(), "put {path}: {}", text(&put));
    }

    fn host(&self, words: &[&str]) -> Output {
        Command::new(&self.script).args(words).stdin(Stdio::null()).output().unwrap()
    }

    /// Makes it a builder that exists already: root's stock sshd in `/m`, at port 2200 of this address, for the broker of
    /// that machine and with these variables. `authorized_keys` is `/m/keys`.
    pub(crate) fn serve_ssh(&self, address: &str, client: &Self, environment: &str) {
        let key = client.sh("cat /var/lib/nix-broker/id_ed25519.pub");
        self.write("/m/keys", &format!("{key}\n"));
        self.write(
            "/m/sshd_config",
            &format!(
                "ListenAddress {address}\nPort 2200\nHostKey /m/host_key\nPidFile none\nAuthorizedKeysFile /m/keys\n\
                 UsePAM no\nStrictModes no\nSetEnv {environment}\n"
            ),
        );
        self.sh("mkdir -p /run/sshd; cd /m; ssh-keygen -q -t ed25519 -N '' -f host_key");
        self.serve(&format!("{address}:2200"), "/usr/sbin/sshd -D -e -f /m/sshd_config", "/m/log");
    }

    /// Starts a server and waits until it listens on this IPv4 address and port.
    pub(crate) fn serve(&self, at: &str, command: &str, log: &str) {
        self.sh(&format!("setsid {command} </dev/null >{log} 2>&1 &"));
        let at: SocketAddrV4 = at.parse().unwrap();
        // As the kernel lists it: the address as a number of this machine's byte order, and the state "listening".
        let address = u32::from_ne_bytes(at.ip().octets());
        let listening = format!(" {address:08X}:{:04X} 00000000:0000 0A ", at.port());
        self.wait(&format!("`{command}` to listen"), || {
            self.output("root", &["grep", "-q", &listening, "/proc/net/tcp"]).status.success()
        });
    }

    /// The key of that sshd, as a configuration has it.
    pub(crate) fn host_key(&self) -> String {
        self.sh("cut -d' ' -f1,2 /m/host_key.pub")
    }

    /// Ends all that runs there, as when power is lost.
    pub(crate) fn halt(&self) {
        let halt = self.host(&["halt", &self.name]);
        assert!(halt.status.success(), "{}", text(&halt));
    }

    /// Where its files are seen from this machine.
    pub(crate) fn root(&self) -> PathBuf {
        let root = self.host(&["root", &self.name]);
        assert!(root.status.success(), "{}", text(&root));
        String::from_utf8(root.stdout).unwrap().trim().into()
    }

    /// Its name, as tests/lab/host.sh knows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The release the machine runs.
    pub(crate) fn release(&self) -> &'static str {
        self.release
    }

    /// Where the broker's state lies, in the machine.
    pub(crate) fn state_dir(&self) -> &'static str {
        STATE_DIR
    }

    /// Where the broker's socket is, in the machine.
    pub(crate) fn socket(&self) -> &'static str {
        SOCKET
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::env::var_os("NIX_BROKER_LAB_KEEP").is_some() {
            eprintln!("host {} is kept; `tests/lab/host.sh down {}` ends it", self.name, self.name);
            return;
        }
        let _gone = self.host(&["down", &self.name]);
        if let Some(mut child) = self.broker.take() {
            let _reaped = child.wait();
        }
    }
}

/// Both streams of an output, and how it ended.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
