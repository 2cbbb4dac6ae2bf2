//! What is large yields to what is small: a huge transfer leaves the link's own queue short while builds run beside it.
//!
//! Owns the measure and the brake. A connection apart keeps what is large out of the buffers of what is small, but they
//! still meet in the queue before the narrowest link, which a huge transfer keeps full. How full is seen by what a question
//! on a small connection takes longer than on an empty link. As long as daemons are at work there, the transfer is given
//! less when that is too long and more when it is not; when none has been for a while, it is given all there is. What comes
//! down is braked where it is read, because no more is asked for than was read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::remote::Remote;

/// Of a round trip, what the queue may add to it.
const QUEUE: f64 = 0.25;
/// On a short way it may add this: a busy machine answers no sooner.
const MIN_QUEUE: Duration = Duration::from_millis(10);
/// Between two questions, at least.
const PAUSE: Duration = Duration::from_millis(20);
/// The brake at its hardest, of the rate at which the queue was full.
const LEAST: f64 = 0.3;
/// What is given back after each answer that came soon enough, until the brake is off.
const RELEASE: f64 = 1.08;
/// Builds that follow each other leave a moment between them in which none is at work. A transfer that filled the queue in
/// each of them would hold each of them up.
const LINGER: Duration = Duration::from_secs(1);
/// Moved at once however hard the brake: a few packets.
const PIECE: f64 = (32 << 10) as f64;

/// The brake of one transfer, for all of its lanes.
#[derive(Debug)]
pub(super) struct Throttle(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Bytes per second, when it brakes.
    limit: Option<f64>,
    /// Bytes that may move, as of then.
    allowance: f64,
    as_of: Instant,
    sent: u64,
}

impl Throttle {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { limit: None, allowance: 0.0, as_of: Instant::now(), sent: 0 })))
    }

    /// How much may move now, or when to ask again.
    fn allowed(&self, now: Instant) -> Result<usize, Instant> {
        let mut state = self.0.lock();
        let Some(limit) = state.limit else { return Ok(usize::MAX) };
        let passed = now.saturating_duration_since(state.as_of).as_secs_f64();
        state.allowance = (state.allowance + passed * limit).min(PIECE);
        state.as_of = now;
        if state.allowance > 0.0 {
            return Ok(PIECE as usize);
        }
        Err(now + Duration::from_secs_f64((1.0 - state.allowance) / limit).max(Duration::from_millis(1)))
    }

    fn has_sent(&self, bytes: usize) {
        let mut state = self.0.lock();
        state.sent += bytes as u64;
        state.allowance -= bytes as f64;
    }

    /// Bytes that have gone over the wire, either way.
    pub(super) fn sent(&self) -> u64 {
        self.0.lock().sent
    }

    fn set(&self, limit: Option<f64>) {
        let mut state = self.0.lock();
        if state.limit.is_none() {
            (state.allowance, state.as_of) = (0.0, Instant::now());
        }
        state.limit = limit;
    }

    /// A lane that brakes.
    pub(super) fn lane<W>(self: &Arc<Self>, stream: W) -> Throttled<W> {
        Throttled { stream, throttle: Arc::clone(self), until: Box::pin(sleep_until(Instant::now())) }
    }

    /// Brakes as it must; never ends. To be dropped with the transfer.
    pub(super) async fn watch(&self, remote: &Remote, round_trip: Duration) {
        let pause = PAUSE.max(round_trip);
        let mut brake = Brake::new(round_trip);
        let mut company = Company::default();
        loop {
            let (before, began) = (self.sent(), Instant::now());
            tokio::time::sleep(pause).await;
            if !company.is_there(remote.is_in_use(), Instant::now()) {
                brake = Brake::new(round_trip);
                self.set(None);
                continue;
            }
            // A connection that is gone is noticed elsewhere.
            let Ok(answered) = remote.sessions().round_trip().await else { continue };
            let rate = (self.sent() - before) as f64 / began.elapsed().as_secs_f64();
            self.set(brake.next(answered, rate));
        }
    }
}

/// Whether builds run beside a transfer, or will in a moment.
#[derive(Debug, Default)]
struct Company {
    seen: Option<Instant>,
}

impl Company {
    fn is_there(&mut self, is_in_use: bool, now: Instant) -> bool {
        if is_in_use {
            self.seen = Some(now);
        }
        self.seen.is_some_and(|seen| now.saturating_duration_since(seen) < LINGER)
    }
}

/// How hard to brake.
#[derive(Debug)]
struct Brake {
    may_take: Duration,
    limit: Option<f64>,
    /// What went through when the queue was full.
    full: f64,
}

impl Brake {
    fn new(round_trip: Duration) -> Self {
        let may_take = round_trip + round_trip.mul_f64(QUEUE).max(MIN_QUEUE);
        Self { may_take, limit: None, full: 0.0 }
    }

    /// After an answer, while so many bytes a second went through: the limit from now on.
    fn next(&mut self, answered: Duration, rate: f64) -> Option<f64> {
        if answered > self.may_take {
            if self.limit.is_none() {
                self.full = rate;
            }
            // The longer the queue, the less is to follow it: it has to become shorter first.
            let less = (self.may_take.as_secs_f64() / answered.as_secs_f64()).clamp(0.5, 0.9);
            let limit = self.limit.map_or(rate, |limit| limit.min(rate.max(self.full * LEAST))) * less;
            self.limit = Some(limit.max(self.full * LEAST).max(PIECE));
        } else {
            // Twice of what once filled the queue, and the link has become another one.
            self.limit = self.limit.map(|limit| limit * RELEASE).filter(|limit| *limit < 2.0 * self.full);
        }
        self.limit
    }
}

/// See [`Throttle::lane`].
#[derive(Debug)]
pub(super) struct Throttled<W> {
    stream: W,
    throttle: Arc<Throttle>,
    until: Pin<Box<Sleep>>,
}

impl<S> Throttled<S> {
    fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            match self.throttle.allowed(Instant::now()) {
                Ok(allowed) => return Poll::Ready(allowed),
                Err(until) => {
                    self.until.as_mut().reset(until);
                    ready!(self.until.as_mut().poll(cx));
                }
            }
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Throttled<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let allowed = ready!(self.poll_allowed(cx));
        let limit = buffer.remaining().min(allowed);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(limit));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let got = part.filled().len();
        buffer.advance(got);
        self.throttle.has_sent(got);
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Throttled<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let allowed = ready!(self.poll_allowed(cx));
        let some = &bytes[..bytes.len().min(allowed)];
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, some))?;
        self.throttle.has_sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const ROUND_TRIP: Duration = Duration::from_millis(40);
    const RATE: f64 = 12.5e6;

    /// A link of 100 Mbit/s with a queue of 100 ms before it: what is given too much waits, and the rest is lost.
    #[derive(Default)]
    struct Link {
        queue: f64,
    }

    impl Link {
        /// So long at this rate; says what a question takes then.
        fn run(&mut self, rate: f64, time: Duration) -> Duration {
            self.queue = (self.queue + (rate - RATE) * time.as_secs_f64()).clamp(0.0, RATE * 0.1);
            ROUND_TRIP + Duration::from_secs_f64(self.queue / RATE)
        }
    }

    #[test]
    fn a_full_queue_is_emptied_in_a_few_round_trips_and_the_link_stays_busy() {
        let (mut link, mut brake) = (Link::default(), Brake::new(ROUND_TRIP));
        let mut rate = 2.0 * RATE;
        let (mut waited, mut sent) = (Vec::new(), 0.0);
        for _ in 0..200 {
            let answered = link.run(rate, 2 * ROUND_TRIP);
            sent += rate.min(RATE);
            waited.push(answered - ROUND_TRIP);
            rate = brake.next(answered, rate.min(RATE)).unwrap_or(2.0 * RATE);
        }
        assert!(waited[0] >= Duration::from_millis(80), "{waited:?}");
        let longest = waited[6..].iter().max().unwrap();
        assert!(*longest <= ROUND_TRIP, "a build that asks twice is held up for two round trips: {waited:?}");
        assert!(sent / 200.0 > 0.75 * RATE, "{} of the link is used", sent / 200.0 / RATE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_moment_between_two_builds_is_no_end() {
        let mut company = Company::default();
        let start = Instant::now();
        let at = |time| start + Duration::from_millis(time);
        assert!(!company.is_there(false, start), "a transfer alone gets all there is");
        assert!(company.is_there(true, at(100)));
        assert!(company.is_there(false, at(300)) && company.is_there(true, at(900)));
        assert!(company.is_there(false, at(1_800)));
        assert!(!company.is_there(false, at(2_000)));
    }

    #[test]
    fn answers_that_are_late_for_another_reason_do_not_stop_an_upload() {
        let mut brake = Brake::new(ROUND_TRIP);
        let mut rate = RATE;
        for _ in 0..100 {
            rate = brake.next(10 * ROUND_TRIP, rate).unwrap();
        }
        assert!(rate >= LEAST * RATE, "{rate}");
        for _ in 0..100 {
            if brake.next(ROUND_TRIP, rate).is_none() {
                return;
            }
        }
        panic!("the brake stays on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_sends_as_much_as_it_may() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let throttle = Throttle::new();
        throttle.set(Some(1e6));
        let mut lane = throttle.lane(near);
        let reader = tokio::spawn(async move {
            let mut far = far;
            tokio::io::copy(&mut far, &mut tokio::io::sink()).await
        });
        let began = Instant::now();
        lane.write_all(&vec![0; 2_000_000]).await.unwrap();
        let took = began.elapsed().as_secs_f64();
        assert!((1.8..2.2).contains(&took), "{took}");
        throttle.set(None);
        let began = Instant::now();
        lane.write_all(&vec![0; 2_000_000]).await.unwrap();
        assert!(began.elapsed() < Duration::from_millis(100));
        drop(lane);
        assert_eq!(reader.await.unwrap().unwrap(), 4_000_000);

        // The same on the way down.
        throttle.set(Some(1e6));
        let mut lane = throttle.lane(tokio::io::AsyncReadExt::take(tokio::io::repeat(7), 2_000_000));
        let began = Instant::now();
        assert_eq!(tokio::io::copy(&mut lane, &mut tokio::io::sink()).await.unwrap(), 2_000_000);
        let took = began.elapsed().as_secs_f64();
        assert!((1.8..2.2).contains(&took), "{took}");
    }
}
