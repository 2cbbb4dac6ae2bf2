//! Large transfers: one stream over several connections to a builder (see `stripes`).
//!
//! Owns when a transfer is worth it, how many lanes it gets, and the channels. A stream begins with one lane; more are
//! opened when it moves about as much per round trip as one channel can, for then it is the channel that holds it up and not
//! the link. Streams after it on the same way begin with all of theirs. So a slow link is never given more to queue than one
//! channel had in flight anyway. A slow link without a delay gets a stream of one lane: its blocks can be packed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::remote::{DAEMON_COMMAND, Remote};
use super::throttle::{Throttle, Throttled};
use crate::protocol::worker::Connection;
use crate::ssh::{Channel, Load, Stdin, Stdout};
use crate::transfer::download::Arriving;
use crate::transfer::stripes::{
    Lane, MAX_LANES, Place, READY, READY_PLAIN, READY_TO_PACK, StripedReader, StripedWriter,
};
use crate::transfer::{Beat, Cargo, upload};

/// Less is over before a second lane is there.
const WORTH_IT: u64 = 16 << 20;
/// The same for a link that is known to be slow.
const WORTH_IT_IF_SLOW: u64 = 2 << 20;
/// What a stock sshd takes per round trip on one channel: its window.
const WINDOW: f64 = (2 << 20) as f64;
/// A lane that moves so much per round trip is held up by its window, or nearly so.
const FULL_LANE: f64 = 0.4 * WINDOW;
/// Nobody needs more: the fastest link that is worth filling, in bytes per second.
const FAST_LINK: f64 = 150e6;
/// From asking for a lane to its first word.
const LANE_LIMIT: Duration = Duration::from_secs(20);
/// Bytes of an archive read at once.
const READ_BUFFER: usize = 128 << 10;

/// How many lanes fill a fast link with this round trip; with one there is nothing to gain.
fn lanes_for(round_trip: Duration) -> usize {
    let lanes = (round_trip.as_secs_f64() * FAST_LINK / WINDOW).ceil();
    // A little more than just enough: lanes wait for each other.
    if lanes <= 1.0 { 1 } else { (lanes as usize + 1).min(MAX_LANES - 1) }
}

/// The stream for a transfer of this size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    lanes: usize,
    round_trip: Duration,
}

impl Width {
    /// Nothing unless a stream is worth it for so many bytes.
    pub(super) async fn of(remote: &Remote, size: u64) -> Option<Self> {
        if size < worth_it(remote) {
            return None;
        }
        if remote.link().round_trip().is_none() {
            remote.measure_round_trip().await;
        }
        Self::known(remote)
    }

    /// As far as is known without asking.
    pub(super) fn known(remote: &Remote) -> Option<Self> {
        let round_trip = remote.link().round_trip().filter(|_| remote.link().can_stripe())?;
        let lanes = lanes_for(round_trip);
        (lanes > 1 || may_pack(remote)).then_some(Self { lanes, round_trip })
    }
}

/// What is as large as this goes apart from what is small.
pub(super) fn worth_it(remote: &Remote) -> u64 {
    if remote.link().is_slow() { WORTH_IT_IF_SLOW } else { WORTH_IT }
}

/// Whether packing may help, as far as is known before a stream measures the link itself.
fn may_pack(remote: &Remote) -> bool {
    remote.link().is_slow() && remote.link().packs() != Some(false)
}

/// Sends paths over a stream of that width.
pub(super) async fn send(
    remote: &Arc<Remote>,
    cargo: Cargo,
    width: Width,
    beat: &Beat,
) -> anyhow::Result<()> {
    let place = Place::new(super::fresh_token()?);
    let (joining, lanes) = unbounded_channel();
    let throttle = Throttle::new();
    let opener = open_lanes::<Stdin>(remote, width, joining, &place, &throttle);
    let sent = async {
        let mut main = start(remote, Load::Small, &place.merge_into(DAEMON_COMMAND)).await?;
        let program = main.remote.clone();
        let packs = expect_main(&mut main, remote).await?;
        let writer = StripedWriter::new(main.stdin, lanes, packs);
        let sent = async {
            let mut connection = Connection::open(Box::new(main.stdout), Box::new(writer)).await?;
            upload(&mut connection, cargo, beat).await
        };
        sent.await.map_err(|error| super::remote::explain(&program, anyhow::Error::new(error)))
    };
    tokio::select! {
        sent = while_opening(opener, sent) => sent,
        () = throttle.watch(remote, width.round_trip) => Err(anyhow!("the brake of an upload has ended")),
    }
}

/// Fetches one output over a stream of that width.
pub(super) async fn fetch(
    remote: &Arc<Remote>,
    arriving: &mut Arriving,
    width: Width,
    beat: &Beat,
) -> anyhow::Result<()> {
    let place = Place::new(super::fresh_token()?);
    let (joining, lanes) = unbounded_channel();
    let throttle = Throttle::new();
    let opener = open_lanes::<Stdout>(remote, width, joining, &place, &throttle);
    let fetched = async {
        let mut main = start(remote, Load::Small, &place.split(&arriving.info.path)).await?;
        let packs = expect_main(&mut main, remote).await?;
        let reader = StripedReader::new(main.stdin, lanes, arriving.info.nar_size, packs);
        let mut reader = BufReader::with_capacity(READ_BUFFER, reader);
        Ok(arriving.receive(&mut reader, beat).await?)
    };
    tokio::select! {
        fetched = while_opening(opener, fetched) => fetched,
        () = throttle.watch(remote, width.round_trip) => Err(anyhow!("the brake of a download has ended")),
    }
}

/// What a lane's channel is kept as: the half that carries data. The other one would only be in the way.
trait Half: Sized + Send + 'static {
    /// The command at the other end.
    fn command(place: &Place, index: usize) -> String;
    fn of(channel: Channel) -> Self;
}

impl Half for Stdin {
    fn command(place: &Place, index: usize) -> String {
        place.lane_up(index)
    }

    fn of(channel: Channel) -> Self {
        channel.stdin
    }
}

impl Half for Stdout {
    fn command(place: &Place, index: usize) -> String {
        place.lane_down(index)
    }

    fn of(channel: Channel) -> Self {
        channel.stdout
    }
}

/// Opens the lanes. The first joins at once, the others when the first is found to be too narrow: they are opened ahead
/// because that takes many round trips.
async fn open_lanes<S: Half>(
    remote: &Arc<Remote>,
    width: Width,
    joining: UnboundedSender<Lane<Throttled<S>>>,
    place: &Place,
    throttle: &Arc<Throttle>,
) -> anyhow::Result<()> {
    let too_narrow = CancellationToken::new();
    let open = async |index| {
        let mut channel = start(remote, Load::Bulk, &S::command(place, index)).await?;
        expect_ready(&mut channel).await?;
        Ok::<_, anyhow::Error>(Lane { index, stream: throttle.lane(S::of(channel)) })
    };
    let first = async {
        // A stream that has ended meanwhile needs no lane.
        let _ended = joining.send(open(0).await?);
        until_too_narrow(remote, width, throttle).await;
        too_narrow.cancel();
        Ok::<_, anyhow::Error>(())
    };
    let others = (1..width.lanes).map(async |index| {
        match open(index).await {
            Ok(lane) => {
                too_narrow.cancelled().await;
                let _ended = joining.send(lane);
            }
            // The stream flows without it.
            Err(error) => {
                tracing::debug!(builder = %remote.builder(), error = %super::chain(&error), "one lane less");
            }
        }
    });
    tokio::try_join!(first, async {
        join_all(others).await;
        Ok(())
    })?;
    tracing::debug!(builder = %remote.builder(), lanes = width.lanes, "a stream is as wide as it can be");
    Ok(())
}

/// Until the only lane moves about as much per round trip as one lane can: over the wire, not of what is packed for it.
/// Once that has been seen, it is known.
async fn until_too_narrow(remote: &Remote, width: Width, throttle: &Throttle) {
    let pause = (width.round_trip * 2).max(Duration::from_millis(50));
    let enough = FULL_LANE * (pause.as_secs_f64() / width.round_trip.as_secs_f64());
    while !remote.link().is_narrow() {
        let before = throttle.sent();
        tokio::time::sleep(pause).await;
        // What filled our own buffers in the beginning has gone nowhere yet.
        if before as f64 > WINDOW && (throttle.sent() - before) as f64 >= enough {
            remote.link().note_narrow();
        }
    }
}

/// Does the work while lanes are opened; only if the first one fails is there no work.
async fn while_opening<T>(
    opener: impl Future<Output = anyhow::Result<()>>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::pin!(opener, work);
    tokio::select! {
        done = &mut work => done,
        opened = &mut opener => {
            opened.context("open the first lane of a stream")?;
            work.await
        }
    }
}

pub(super) async fn start(remote: &Remote, load: Load, command: &str) -> anyhow::Result<Channel> {
    Ok(remote.sessions().open_for(load, command, Instant::now() + LANE_LIMIT).await?)
}

async fn expect_ready(channel: &mut Channel) -> anyhow::Result<()> {
    let said: [u8; READY.len()] = first_word(channel).await?;
    if said == *READY { Ok(()) } else { Err(no_script(channel)) }
}

/// The first word of the stream's own script; whether the builder can pack.
pub(super) async fn expect_main(channel: &mut Channel, remote: &Remote) -> anyhow::Result<bool> {
    let said: [u8; READY_TO_PACK.len()] = first_word(channel).await?;
    let packs = said == *READY_TO_PACK;
    if !packs && said != *READY_PLAIN {
        return Err(no_script(channel));
    }
    remote.link().note_packs(packs);
    Ok(packs)
}

async fn first_word<const LEN: usize>(channel: &mut Channel) -> anyhow::Result<[u8; LEN]> {
    let mut said = [0; LEN];
    match timeout(LANE_LIMIT, channel.stdout.read_exact(&mut said)).await {
        Ok(Ok(_)) => Ok(said),
        Ok(Err(_)) | Err(_) => Err(no_script(channel)),
    }
}

fn no_script(channel: &Channel) -> anyhow::Error {
    anyhow!("a stream's script does not run there: {}", channel.remote.stderr_tail().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_as_many_as_the_round_trip_asks_for() {
        let lanes = |ms| lanes_for(Duration::from_millis(ms));
        assert_eq!(lanes(0), 1);
        assert_eq!(lanes(10), 1);
        assert_eq!(lanes(40), 4);
        assert_eq!(lanes(100), 5, "others need connections too");
    }
}
