//! Builder to builder: what one builder of ours has goes to another over the network they are on, and not home and back.
//!
//! Owns who is asked for what, the one transfer, and the memory of who cannot reach whom. A builder that sends gets a
//! [`Pass`]: a key that is good for minutes, for one program on the builder that wants, which takes bytes for one stream
//! as long as that stream lives, and does nothing else. What those bytes have to be we say ourselves (see
//! `transfer::direct`), as we do when we send them; so a builder that sends can do no more harm than not to. A pass works
//! where the broker's key is a `cert-authority`; where it is not, or one cannot reach the other, everything is sent from
//! here, and it is not tried again for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, anyhow};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::{Instant, timeout};

use super::remote::{DAEMON_COMMAND, Remote, explain};
use super::stall::unless_still;
use super::wide;
use crate::model::{BuilderId, StorePath};
use crate::protocol::worker::Connection;
use crate::provider::Inner;
use crate::ssh::{Load, Pass, Stdout, Target};
use crate::transfer::direct::{DirectWriter, SENT, Way, errand, errand_command};
use crate::transfer::stripes::{Place, READY};
use crate::transfer::{Beat, Cargo, announce};

/// A path of less is not worth the programs that are started for it.
const MIN_PATH: u64 = 1 << 20;
/// A builder that is nearer than this is as near to us as to any other, unless the link is known to be slow.
const FAR: Duration = Duration::from_millis(2);
/// What an attempt may cost before it counts as failed: as long as it would take over a link of so many bytes per second.
const PATIENCE_RATE: u64 = 8 << 20;
const MIN_PATIENCE: Duration = Duration::from_secs(2);
const MAX_PATIENCE: Duration = Duration::from_secs(10);
/// A transfer that stands still for so long is broken off.
const STILL_LIMIT: Duration = Duration::from_secs(2 * 60);
/// How long it is remembered that one builder could not send to another.
const APART: Duration = Duration::from_secs(10 * 60);
/// A line of what a sending builder reports, at most.
const MAX_LINE: u64 = 1 << 10;

/// The builders that give to each other and take from each other.
#[derive(Debug, Default)]
pub(crate) struct Neighbours(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    builders: BTreeMap<BuilderId, Weak<Remote>>,
    /// Who could not send to whom, and until when that counts.
    apart: BTreeMap<(BuilderId, BuilderId), Instant>,
}

/// How other builders come to one.
#[derive(Debug)]
pub(crate) struct Door {
    /// Who they are.
    pub(crate) neighbours: Arc<Neighbours>,
    /// Where it is for them, and for which of them.
    pub(crate) inner: Inner,
    /// The rest of the way, and the key whose word counts there.
    pub(crate) target: Target,
}

impl Neighbours {
    /// It may be asked for what it has, if it takes from others too.
    pub(crate) fn join(&self, remote: &Arc<Remote>) {
        if remote.door.is_none() {
            return;
        }
        let mut known = self.0.lock();
        known.builders.retain(|_, remote| remote.strong_count() > 0);
        known.builders.insert(remote.builder(), Arc::downgrade(remote));
    }

    /// Those that may send to this builder, and are where they get to it.
    fn of(&self, to: BuilderId, inner: &Inner) -> Vec<Arc<Remote>> {
        let mut known = self.0.lock();
        let now = Instant::now();
        known.apart.retain(|_, until| *until > now);
        let may = |from: &BuilderId| *from != to && !known.apart.contains_key(&(*from, to));
        let may = known.builders.iter().filter(|(from, _)| may(from));
        let is_near = |from: &Arc<Remote>| from.door.as_ref().is_some_and(|door| inner.is_for(&door.inner));
        may.filter_map(|(_, remote)| remote.upgrade()).filter(is_near).collect()
    }
}

/// The builder that has most of what is large of this, and what of it; nothing if that had better be sent from here. Of
/// several that have as much, one in the same zone: AWS charges for bytes from one zone to another.
pub(super) async fn source_for(
    to: &Arc<Remote>,
    cargo: &Cargo,
) -> Option<(Arc<Remote>, BTreeSet<StorePath>)> {
    let door = to.door.as_ref()?;
    let large: BTreeMap<_, _> = cargo.sizes().filter(|(_, size)| *size >= MIN_PATH).collect();
    let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
    if sum(&mut large.values().copied()) < wide::worth_it(to) {
        return None;
    }
    let wanted: BTreeSet<StorePath> = large.keys().copied().cloned().collect();
    let has = |from: &Arc<Remote>| {
        from.look();
        let paths = from.presence.of(&wanted);
        let size = sum(&mut paths.iter().filter_map(|path| large.get(path).copied()));
        (size, paths)
    };
    let (from, (size, paths)) = door
        .neighbours
        .of(to.builder(), &door.inner)
        .into_iter()
        .map(|from| {
            let what = has(&from);
            (from, what)
        })
        .max_by_key(|(from, (size, _))| {
            (*size, from.door.as_ref().is_some_and(|from| from.inner.is_beside(&door.inner)))
        })?;
    if size < wide::worth_it(to) {
        return None;
    }
    if to.link().round_trip().is_none() {
        to.measure_round_trip().await;
    }
    let is_far = to.link().is_slow() || to.link().round_trip().is_some_and(|round_trip| round_trip >= FAR);
    is_far.then_some((from, paths))
}

/// It is not tried again for a while: what went wrong, a person can read in the log.
pub(super) fn keep_apart(to: &Remote, from: &Remote, error: &anyhow::Error) {
    let reason = super::chain(error);
    tracing::info!(builder = %to.builder(), from = %from.builder(), reason, "one builder is not to send to another for a while");
    if let Some(door) = &to.door {
        door.neighbours.0.lock().apart.insert((from.builder(), to.builder()), Instant::now() + APART);
    }
}

/// Makes one builder send these paths to the other.
pub(super) async fn bring(to: &Arc<Remote>, from: &Arc<Remote>, cargo: Cargo) -> anyhow::Result<()> {
    let door = to.door.as_ref().context("nobody else may come to it")?;
    let (_to, _from) = (to.occupy(), from.occupy());
    let (size, began, beat) = (cargo.size(), Instant::now(), Beat::default());
    let patience = Duration::from_secs(size / PATIENCE_RATE).clamp(MIN_PATIENCE, MAX_PATIENCE);
    let place = Place::new(super::fresh_token()?);
    let pass = Pass::new(&door.target.key, &door.target.user, &place.lane_from_elsewhere())?;
    let host_keys: Vec<_> = door.target.host_keys.iter().map(ToString::to_string).collect();
    let errand = errand(
        &Way {
            address: &door.inner.host,
            port: door.target.port,
            user: &door.target.user,
            host_keys: &host_keys,
            private_key: &pass.private_openssh_pem,
            certificate: &pass.certificate,
        },
        &cargo,
    );
    let open = async {
        let take = place.merge_into(DAEMON_COMMAND);
        let send = errand_command(&super::fresh_token()?);
        let (main, sender) =
            tokio::try_join!(wide::start(to, Load::Small, &take), wide::start(from, Load::Small, &send))?;
        Ok::<_, anyhow::Error>((main, sender))
    };
    let ready = async {
        let (mut main, mut sender) = open.await?;
        sender.stdin.write_all(errand.as_bytes()).await?;
        sender.stdin.shutdown().await?;
        let _packs = wide::expect_main(&mut main, to).await?;
        let mut report = Report { lines: BufReader::new(sender.stdout), program: sender.remote };
        while report.next().await?.as_bytes() != READY.trim_ascii() {}
        Ok::<_, anyhow::Error>((main, report))
    };
    let (main, mut report) = timeout(patience, ready)
        .await
        .map_err(|_| anyhow!("builder {} does not get there within {patience:?}", from.builder()))??;
    let program = main.remote.clone();
    // Ends only if something goes wrong.
    let sent = async {
        loop {
            match report.next().await {
                Ok(line) if line == SENT => beat.add(1),
                Ok(line) => return anyhow!("builder {} says `{line}`", from.builder()),
                Err(error) => return error,
            }
        }
    };
    let taken = async {
        let (writer, elsewhere) = DirectWriter::new(main.stdin);
        let taken = async {
            let mut connection = Connection::open(Box::new(main.stdout), Box::new(writer)).await?;
            announce(&mut connection, cargo, &elsewhere).await
        };
        taken.await.map_err(|error| explain(&program, anyhow::Error::new(error)))
    };
    let done = async {
        tokio::select! {
            taken = taken => taken,
            broken = sent => Err(broken),
        }
    };
    unless_still(STILL_LIMIT, &beat, done).await?;
    let (seconds, pace) = (began.elapsed().as_secs_f64(), size as f64 / began.elapsed().as_secs_f64());
    tracing::info!(
        builder = %to.builder(), from = %from.builder(), bytes = size, seconds, "inputs came from another builder"
    );
    if to.link().pace().is_some_and(|ours| ours > pace) {
        keep_apart(to, from, &anyhow!("it takes longer than from here"));
    }
    Ok(())
}

/// What a sending builder says.
struct Report {
    lines: BufReader<Stdout>,
    program: crate::ssh::Remote,
}

impl Report {
    /// The next line. When it has nothing more to say because all is sent, there is none; its end is an error otherwise.
    async fn next(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        (&mut self.lines).take(MAX_LINE).read_line(&mut line).await?;
        if line.ends_with('\n') {
            line.pop();
            return Ok(line);
        }
        let exit = self.program.exit().await;
        if exit.is_success() {
            return std::future::pending().await;
        }
        Err(explain(&self.program, anyhow!("the sending builder's end: {exit}")))
    }
}
