//! The `local` provider: whatever dies, and in whatever order, nothing of a machine is left.
//!
//! Nix itself is not needed: a machine is an sshd with an environment, and a stand-in answers for `nix-daemon`. What a
//! real Nix makes of that environment is tested end to end.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix_broker::model::{
    BuilderId, Demand, Feature, InstanceId, LocalSpec, Offer, PoolName, PoolSpec, ProviderSpec, Slots, System,
};
use nix_broker::provider::{Ending, LaunchOrder, Launched, Provider, ProviderContext, ProviderErrorKind};
use nix_broker::ssh::{Channel, ClientKey, HostKey, Sessions, Target};

/// Far more than anything here takes; it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A launch for one build.
fn order(pool: &PoolSpec) -> LaunchOrder<'_> {
    let demand = Demand { builds: 1, on_demand_only: false };
    LaunchOrder { builder: BuilderId(1), pool, demand, at_most: None, progress: &|_| {} }
}

/// A context with the broker that was built for this test, which is not the running program.
fn context(state_dir: PathBuf, client_key: String) -> ProviderContext {
    let no_host_keys = || Err(std::io::Error::other("a local machine makes its own host key"));
    let context = ProviderContext::new(state_dir, client_key, no_host_keys).unwrap();
    ProviderContext { broker_program: env!("CARGO_BIN_EXE_broker").into(), ..context }
}

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + PATIENCE
}

/// A broker's state directory, a key, and a stand-in for Nix.
struct Ground {
    path: PathBuf,
    _cleanup: Option<tempfile::TempDir>,
    key: ClientKey,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = directory.path().join("nix-daemon");
        fs::write(&daemon, "#!/bin/sh\necho 'nix-daemon (Nix) 2.26.3'\n").unwrap();
        fs::set_permissions(&daemon, fs::Permissions::from_mode(0o755)).unwrap();
        Self { path: directory.path().to_owned(), _cleanup: Some(directory), key: ClientKey::generate() }
    }

    fn state_dir(&self) -> PathBuf {
        self.path.join("state")
    }

    fn pool(&self) -> PoolSpec {
        let spec = LocalSpec {
            nix_daemon: Some(self.path.join("nix-daemon")),
            sshd: None,
            sandbox_paths: vec!["/bin/sh=/bin/busybox".into()],
        };
        PoolSpec {
            name: PoolName::new("here"),
            offer: Offer {
                systems: [System::new(format!("{}-linux", std::env::consts::ARCH))].into(),
                features: [Feature::new("kvm"), Feature::new("ca-derivations")].into(),
                mandatory: [Feature::new("gccarch-znver3")].into(),
            },
            slots: Slots::Fixed(3),
            min_builders: 0,
            max_builders: 2,
            idle_timeout: PATIENCE,
            surplus_idle_timeout: PATIENCE,
            max_lifetime: PATIENCE,
            launch_horizon: None,
            launch_timeout: PATIENCE,
            declines: [].into(),
            direct: true,
            provider: ProviderSpec::Local(spec),
        }
    }

    fn provider(&self) -> Provider {
        let context = context(self.state_dir(), self.key.public_openssh());
        Provider::for_pool(&self.pool(), &context).unwrap()
    }

    async fn launch(&self, provider: &Provider) -> Machine {
        let launched = match provider.launch(order(&self.pool())).await {
            Ok(launched) => launched,
            Err(error) => panic!("{error}: {:?}", error.source),
        };
        let target = Target {
            address: launched.address.host.clone(),
            port: launched.address.port,
            user: launched.address.user.clone(),
            host_keys: vec![HostKey::parse(&launched.address.host_keys[0]).unwrap()],
            key: self.key.clone(),
            proxy_command: None,
        };
        let directory = self.state_dir().join("local").join(launched.instance.id.as_str());
        Machine { launched, sessions: Sessions::new(target), directory }
    }

    /// No directory of a machine is left, and no process of this one.
    fn assert_clean(&self, id: &InstanceId) {
        let end = Instant::now() + PATIENCE;
        let root = self.state_dir().join("local");
        loop {
            let processes = processes(id.as_str());
            let directories = fs::read_dir(&root).unwrap().count();
            if processes.is_empty() && directories == 0 {
                return;
            }
            assert!(
                Instant::now() < end,
                "{directories} directories and these processes are left: {processes:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What an orphan still has in common with its machine.
#[derive(Clone, Copy)]
enum Ties {
    /// The environment it was started with.
    Some,
    /// Nothing: only its supervisor, to which orphans are given, can know where it came from. No build gets this far,
    /// because its sandbox is a PID namespace that ends with its first process.
    None,
}

struct Machine {
    launched: Launched,
    sessions: Sessions,
    directory: PathBuf,
}

impl Machine {
    fn id(&self) -> &InstanceId {
        &self.launched.instance.id
    }

    /// Something like a build: a store like a real one, and processes with bad habits.
    async fn work(&self, ties: Ties) -> Channel {
        let orphan = match ties {
            Ties::Some => "(setsid sh -c 'trap \"\" TERM HUP INT; sleep 1002' &)",
            Ties::None => "(env -i PATH=$PATH setsid sh -c 'trap \"\" TERM HUP INT; sleep 1002' &)",
        };
        let script = format!(
            "s=${{NIX_REMOTE#*root=}}/nix/store; mkdir -p $s/x/y; chmod 555 $s/x/y $s/x; cd /; \
             env -i PATH=$PATH setsid sleep 1001 & {orphan}; \
             sh -c 'while :; do (sleep 1003 &); sleep 0.05; done' & echo started; wait"
        );
        let mut channel = self.sessions.open(&script, soon()).await.unwrap();
        let mut word = [0; 8];
        tokio::io::AsyncReadExt::read_exact(&mut channel.stdout, &mut word).await.unwrap();
        assert_eq!(&word, b"started\n");
        channel
    }

    fn supervisor(&self) -> i32 {
        let me = std::process::id().to_string();
        let found: Vec<i32> = pids()
            .filter(|&pid| command_line(pid).contains("local-machine"))
            .filter(|&pid| command_line(pid).contains(self.id().as_str()))
            .filter(|&pid| stat(pid).is_some_and(|stat| stat.split_whitespace().nth(1) == Some(&me)))
            .collect();
        assert_eq!(found.len(), 1, "supervisors: {found:?}");
        found[0]
    }

    fn listener(&self) -> i32 {
        let found = pids().find(|&pid| {
            let line = command_line(pid);
            line.contains("sshd_config")
                && line.contains(self.id().as_str())
                && !line.contains("local-machine")
        });
        found.expect("no listener")
    }
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn command_line(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ")
}

/// From the state on; `None` when it is gone.
fn stat(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.rsplit_once(") ")?.1.to_owned();
    (!rest.starts_with('Z')).then_some(rest)
}

/// Every process that has the machine's id in its environment or its command line, or is one of its sleepers.
fn processes(id: &str) -> BTreeSet<(i32, String)> {
    let mine = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(id) || command_line(pid).contains(id)
    };
    pids().filter(|&pid| stat(pid).is_some() && mine(pid)).map(|pid| (pid, command_line(pid))).collect()
}

/// Descendants of a process, which are what the machine consists of whatever they did to their environment.
fn descendants(of: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::from([of]);
    loop {
        let before = found.len();
        for pid in pids() {
            let parent = stat(pid).and_then(|stat| stat.split_whitespace().nth(1)?.parse().ok());
            if parent.is_some_and(|parent: i32| found.contains(&parent)) {
                found.insert(pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

fn assert_dead(pids: &BTreeSet<i32>) {
    let end = Instant::now() + PATIENCE;
    while let Some(&pid) = pids.iter().find(|&&pid| stat(pid).is_some()) {
        assert!(Instant::now() < end, "process {pid} lives on: {}", command_line(pid));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(signal: &str, pid: i32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

#[tokio::test]
async fn a_machine_is_what_its_pool_promises_and_leaves_nothing() {
    let ground = Ground::new();
    let provider = ground.provider();
    let machine = ground.launch(&provider).await;
    assert_eq!(provider.list(), std::slice::from_ref(&machine.launched.instance));
    let conf = fs::read_to_string(machine.directory.join("etc/nix.conf")).unwrap();
    for line in [
        "sandbox = true",
        "max-jobs = 3",
        "system-features = gccarch-znver3 kvm",
        "extra-sandbox-paths = /bin/sh=/bin/busybox",
        "builders =",
        "build-users-group =",
    ] {
        assert!(conf.lines().any(|found| found == line), "no `{line}` in\n{conf}");
    }
    let said =
        machine.sessions.run("echo $NIX_REMOTE $NIX_CONF_DIR; command -v nix-daemon", soon()).await.unwrap();
    let here = machine.directory.canonicalize().unwrap().display().to_string();
    let daemon = ground.path.join("nix-daemon").display().to_string();
    assert_eq!(
        String::from_utf8(said.stdout).unwrap(),
        format!("local?root={here}/root {here}/etc\n{daemon}\n")
    );

    let _work = machine.work(Ties::None).await;
    let all = descendants(machine.supervisor());
    assert!(all.len() > 5, "{all:?}");
    provider.terminate(machine.id(), Ending::Final).await.unwrap();
    // Not "soon": when it returns, nothing is left.
    assert!(!machine.directory.exists());
    assert_eq!(processes(machine.id().as_str()), BTreeSet::new());
    assert_dead(&all);
    assert_eq!(provider.list(), []);
    provider.terminate(machine.id(), Ending::Final).await.unwrap();
    provider.terminate(&InstanceId::new("local-never-was"), Ending::Final).await.unwrap();
}

#[tokio::test]
async fn another_key_does_not_get_in() {
    let ground = Ground::new();
    let provider = ground.provider();
    let machine = ground.launch(&provider).await;
    let address = &machine.launched.address;
    let target = Target {
        address: address.host.clone(),
        port: address.port,
        user: address.user.clone(),
        host_keys: vec![HostKey::parse(&address.host_keys[0]).unwrap()],
        key: ClientKey::generate(),
        proxy_command: None,
    };
    let error = nix_broker::ssh::Session::dial(&target, soon()).await.unwrap_err();
    assert!(matches!(error, nix_broker::ssh::DialError::Refused { .. }), "{error}");
    provider.terminate(machine.id(), Ending::Final).await.unwrap();
}

#[tokio::test]
async fn machines_live_side_by_side_and_end_one_by_one() {
    let ground = Ground::new();
    let provider = ground.provider();
    let (one, two) = tokio::join!(ground.launch(&provider), ground.launch(&provider));
    provider.terminate(one.id(), Ending::Final).await.unwrap();
    assert!(!one.directory.exists());
    assert!(two.sessions.run("true", soon()).await.unwrap().exit.is_success());
    // Its broker lives, so it is no stray.
    assert_eq!(ground.provider().reap_strays().await.unwrap(), 0);
    assert!(two.sessions.run("true", soon()).await.unwrap().exit.is_success());
    provider.terminate(two.id(), Ending::Final).await.unwrap();
    ground.assert_clean(two.id());
}

#[tokio::test]
async fn a_dead_sshd_or_a_signal_ends_the_machine_and_the_broker_hears_why() {
    for how in ["listener", "TERM", "INT"] {
        let ground = Ground::new();
        let provider = ground.provider();
        let machine = ground.launch(&provider).await;
        let _work = machine.work(Ties::None).await;
        let all = descendants(machine.supervisor());
        let why = match how {
            "listener" => {
                kill("-KILL", machine.listener());
                "its sshd ended"
            }
            signal => {
                kill(&format!("-{signal}"), machine.supervisor());
                signal
            }
        };
        let reason = tokio::time::timeout(PATIENCE, provider.gone(machine.id())).await.unwrap();
        assert!(reason.contains(why), "{reason}");
        assert_dead(&all);
        ground.assert_clean(machine.id());
        provider.terminate(machine.id(), Ending::Final).await.unwrap();
    }
}

#[tokio::test]
async fn a_supervisor_killed_outright_is_noticed_and_terminate_does_its_work() {
    let ground = Ground::new();
    let provider = ground.provider();
    let machine = ground.launch(&provider).await;
    let _work = machine.work(Ties::Some).await;
    let all = descendants(machine.supervisor());
    kill("-KILL", machine.supervisor());
    let reason = tokio::time::timeout(PATIENCE, provider.gone(machine.id())).await.unwrap();
    assert!(reason.contains("signal"), "{reason}");
    provider.terminate(machine.id(), Ending::Final).await.unwrap();
    assert!(!machine.directory.exists());
    assert_eq!(processes(machine.id().as_str()), BTreeSet::new());
    assert_dead(&all);
}

#[tokio::test]
async fn a_launch_that_cannot_work_says_why_and_leaves_nothing() {
    let ground = Ground::new();
    let provider = ground.provider();
    let mut pool = ground.pool();
    pool.provider = ProviderSpec::Local(LocalSpec {
        nix_daemon: Some("/no/such/nix-daemon".into()),
        sshd: None,
        sandbox_paths: Vec::new(),
    });
    let error = provider.launch(order(&pool)).await.unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::Config);
    assert!(error.to_string().contains("/no/such/nix-daemon"), "{error}");
    assert_eq!(fs::read_dir(ground.state_dir().join("local")).unwrap().count(), 0);

    // An sshd that approves of its configuration and then does not run.
    let fake = ground.path.join("sshd");
    fs::write(&fake, "#!/bin/sh\n[ \"$1\" = -t ] && exit 0\necho 'no such luck' >&2; exit 3\n").unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let ProviderSpec::Local(mut spec) = ground.pool().provider else { unreachable!() };
    spec.sshd = Some(fake);
    pool.provider = ProviderSpec::Local(spec);
    let error = provider.launch(order(&pool)).await.unwrap_err();
    assert!(error.to_string().contains("does not start"), "{error}");
    assert_eq!(fs::read_dir(ground.state_dir().join("local")).unwrap().count(), 0);
}

#[test]
fn a_state_directory_that_no_configuration_file_could_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ground = Ground::new();
    let context = context(directory.path().join("with blank"), String::new());
    let error = Provider::for_pool(&ground.pool(), &context).unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::Config);
}

/// This test program once more, as a broker that launches a machine and then waits to be killed.
fn other_broker(ground: &Ground, ties: Ties) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_broker_in_a_process_of_its_own", "--ignored", "--nocapture"])
        .env("GROUND", &ground.path)
        .env("TIES", if matches!(ties, Ties::Some) { "some" } else { "none" })
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
#[ignore = "started by the tests that kill it"]
async fn a_broker_in_a_process_of_its_own() {
    let Some(path) = std::env::var_os("GROUND") else { return };
    let ties = if std::env::var("TIES").unwrap() == "some" { Ties::Some } else { Ties::None };
    let ground = Ground { path: path.into(), _cleanup: None, key: ClientKey::generate() };
    let provider = ground.provider();
    let machine = ground.launch(&provider).await;
    let _work = machine.work(ties).await;
    let said = ground.path.join("launched.part");
    fs::write(&said, format!("{} {}", machine.id(), machine.supervisor())).unwrap();
    fs::rename(said, ground.path.join("launched")).unwrap();
    std::future::pending::<()>().await;
}

/// The other broker's machine and all of its processes, once it works.
fn other_machine(ground: &Ground) -> (InstanceId, i32, BTreeSet<i32>) {
    let end = Instant::now() + PATIENCE;
    let said = loop {
        if let Ok(said) = fs::read_to_string(ground.path.join("launched")) {
            break said;
        }
        assert!(Instant::now() < end, "the other broker launches nothing");
        std::thread::sleep(Duration::from_millis(5));
    };
    let (id, supervisor) = said.split_once(' ').unwrap();
    let supervisor = supervisor.parse().unwrap();
    let all = descendants(supervisor);
    assert!(all.len() > 5, "{all:?}");
    (InstanceId::new(id), supervisor, all)
}

#[test]
fn a_broker_killed_outright_takes_its_machine_with_it() {
    let ground = Ground::new();
    let mut broker = other_broker(&ground, Ties::None);
    let (id, _, all) = other_machine(&ground);
    broker.kill().unwrap();
    broker.wait().unwrap();
    assert_dead(&all);
    ground.assert_clean(&id);
}

#[tokio::test]
async fn what_a_dead_broker_and_a_dead_supervisor_leave_is_reaped_by_the_next_broker() {
    let ground = Ground::new();
    let mut broker = other_broker(&ground, Ties::Some);
    let (id, supervisor, all) = other_machine(&ground);
    assert_eq!(ground.provider().reap_strays().await.unwrap(), 0, "its broker lives");
    // Stopped, the supervisor cannot do what it is there for.
    kill("-STOP", supervisor);
    broker.kill().unwrap();
    broker.wait().unwrap();
    kill("-KILL", supervisor);
    assert_eq!(ground.provider().reap_strays().await.unwrap(), 1);
    assert_dead(&all);
    ground.assert_clean(&id);
    assert_eq!(ground.provider().reap_strays().await.unwrap(), 0);
}
