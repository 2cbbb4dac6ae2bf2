//! One person who reads a log: from where he wants to, at his own pace, to the end of the build if he waits for it.

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use super::Shared;
use super::listener::Peer;
use super::log_spool::LogSpool;
use crate::ipc::{Frame, LogReply, LogRequest};
use crate::model::Outcome;

/// Serves one log.
pub(crate) async fn serve(
    stream: UnixStream,
    peer: Peer,
    uid: Option<u32>,
    request: &LogRequest,
    shared: &Shared,
) -> anyhow::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let Some(kept) = shared.logs.find(&request.build) else {
        let reason = format!("there is no log of `{}` here", request.build);
        let hint = "the broker has those of live builds and of some that ended since it started; \
                    Nix has the others: `nix log`";
        return send(&mut writer, &LogReply::Failed { reason, hint: Some(hint.to_owned()) }).await;
    };
    if peer != Peer::Owner && !kept.may_be_read_by(uid) {
        let reason = format!("the log of `{}` is not yours", kept.drv.name());
        let hint =
            "only root, the broker's own user and who brought a build may read its log; try it with `sudo`";
        return send(&mut writer, &LogReply::Failed { reason, hint: Some(hint.to_owned()) }).await;
    }
    let opened = LogReply::Opened { build: kept.build.0, drv: kept.drv.to_string() };
    send(&mut writer, &opened).await?;
    let position = request.tail.map_or(Ok(0), |tail| tail_of(&kept.log, tail));
    let mut position = position.context("read back a build log")?;
    if request.follow {
        tokio::select! {
            followed = follow(&kept.log, &mut position, &mut writer) => followed?,
            // A reader says nothing; what it can do is go.
            _gone = reader.read_u8() => return Ok(()),
        }
    } else {
        send_log(&kept.log, &mut position, &mut writer).await?;
    }
    let (outcome, reason) = match kept.log.outcome() {
        None => (None, None),
        Some(Outcome::Succeeded) => (Some("succeeded"), None),
        Some(Outcome::Failed(failure)) => (Some("failed"), Some(failure.reason)),
        Some(Outcome::Cancelled) => (Some("cancelled"), None),
    };
    send(&mut writer, &LogReply::Ended { outcome: outcome.map(str::to_owned), reason }).await
}

/// Sends what there is and what comes, until the build has ended and all was sent.
async fn follow(log: &LogSpool, position: &mut u64, writer: &mut OwnedWriteHalf) -> anyhow::Result<()> {
    loop {
        send_log(log, position, writer).await?;
        tokio::select! {
            () = log.grown_past(*position) => {}
            () = log.closed() => return send_log(log, position, writer).await,
        }
    }
}

/// Sends what there is now, in pieces: a log of any length costs the memory of one of them.
async fn send_log(log: &LogSpool, position: &mut u64, writer: &mut OwnedWriteHalf) -> anyhow::Result<()> {
    loop {
        let chunk = log.read_from(*position).context("read back a build log")?;
        if chunk.is_empty() {
            return Ok(());
        }
        *position += chunk.len() as u64;
        Frame::Log(chunk).send(writer).await?;
    }
}

/// Where the last whole lines begin that are so many bytes at most.
fn tail_of(log: &LogSpool, tail: u64) -> std::io::Result<u64> {
    let Some(start) = log.len().checked_sub(tail).filter(|start| *start > 0) else { return Ok(0) };
    // With the byte before: a line that begins right there is whole.
    let chunk = log.read_from(start - 1)?;
    let skipped = chunk.iter().position(|byte| *byte == b'\n').map_or(0, |newline| newline as u64);
    Ok(start + skipped)
}

async fn send(writer: &mut OwnedWriteHalf, reply: &LogReply) -> anyhow::Result<()> {
    Ok(Frame::message(reply)?.send(writer).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_begins_with_a_whole_line() {
        let log = LogSpool::new(&std::env::temp_dir());
        log.append(b"one\ntwo\nthree\n").unwrap();
        let tail = |bytes| log.read_from(tail_of(&log, bytes).unwrap()).unwrap();
        assert_eq!(tail(100), b"one\ntwo\nthree\n");
        assert_eq!(tail(14), b"one\ntwo\nthree\n");
        assert_eq!(tail(13), b"two\nthree\n");
        assert_eq!(tail(6), b"three\n");
        assert_eq!(tail(3), b"");
    }
}
