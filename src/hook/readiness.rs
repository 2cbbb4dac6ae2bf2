//! Waiting for a descriptor, for a bounded time.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Waits until there is something to read; `false` when the time is over before, or a signal came.
pub(super) fn readable(from: impl AsFd, limit: Option<Duration>) -> io::Result<bool> {
    ready(&from, PollFlags::IN, limit)
}

/// Waits until something can be written, or never again can; `false` as in [`readable`].
pub(super) fn writable(to: impl AsFd, limit: Duration) -> io::Result<bool> {
    ready(&to, PollFlags::OUT, Some(limit))
}

fn ready(what: &impl AsFd, event: PollFlags, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    });
    match poll(&mut [PollFd::new(what, event)], limit.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
