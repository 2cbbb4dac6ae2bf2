//! One command line: a request, its replies, done.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::driver::DriverHandle;
use super::listener::Peer;
use super::{Shared, bills, log_client};
use crate::ipc::view::StatusView;
use crate::ipc::{Frame, OperatorReply, OperatorRequest, Target};
use crate::model::Status;
use crate::scheduler::{Event, Selection};

/// How long a command line may take to say what it wants.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Between two pictures for somebody who watches.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// Serves one command.
pub(crate) async fn serve(
    mut stream: UnixStream,
    peer: Peer,
    shared: &Arc<Shared>,
    driver: &DriverHandle,
) -> anyhow::Result<()> {
    let request = tokio::time::timeout(REQUEST_LIMIT, Frame::receive(&mut stream)).await;
    let request: OperatorRequest = request.context("wait for a command")??.parse()?;
    if let OperatorRequest::Log(request) = request {
        let uid = stream.peer_cred().ok().map(|peer| peer.uid());
        return log_client::serve(stream, peer, uid, &request, shared).await;
    }
    if let OperatorRequest::Watch = request {
        return watch(stream, shared, driver).await;
    }
    if let (OperatorRequest::Status, Peer::StoreOwner | Peer::User) = (&request, peer) {
        return Ok(picture(shared, driver).await?.send(&mut stream).await?);
    }
    let reply = answer(request, peer, shared, driver).await;
    Ok(Frame::message(&reply)?.send(&mut stream).await?)
}

async fn watch(mut stream: UnixStream, shared: &Arc<Shared>, driver: &DriverHandle) -> anyhow::Result<()> {
    let mut interval = tokio::time::interval(WATCH_INTERVAL);
    loop {
        interval.tick().await;
        // A watcher that went away shows as an error of the write.
        picture(shared, driver).await?.send(&mut stream).await?;
    }
}

/// A picture not much older than [`WATCH_INTERVAL`]: its cost grows with the number of builds, and the owner loop stands
/// still for it, so all who watch share one.
async fn picture(shared: &Arc<Shared>, driver: &DriverHandle) -> anyhow::Result<Frame> {
    let mut shown = shared.picture.lock().await;
    if let Some((made, frame)) = &*shown
        && made.elapsed() < WATCH_INTERVAL * 3 / 4
    {
        return Ok(frame.clone());
    }
    let frame = Frame::message(&status(shared, driver).await)?;
    *shown = Some((Instant::now(), frame.clone()));
    Ok(frame)
}

async fn answer(
    request: OperatorRequest,
    peer: Peer,
    shared: &Arc<Shared>,
    driver: &DriverHandle,
) -> OperatorReply {
    match (request, peer) {
        (OperatorRequest::Status | OperatorRequest::Watch, _) => status(shared, driver).await,
        (OperatorRequest::Why { subject }, _) => {
            let mut lines = shared.declines_of(&subject);
            lines.extend(driver.explain(subject.clone()).await);
            if lines.is_empty() {
                failed(
                    format!("nothing is known about `{subject}`"),
                    "the broker remembers what it was asked since it started; was it asked? see `broker doctor`",
                )
            } else {
                OperatorReply::Why { lines }
            }
        }
        (
            OperatorRequest::Start { .. } | OperatorRequest::Drain { .. } | OperatorRequest::Stop { .. },
            Peer::StoreOwner | Peer::User,
        ) => failed("only root and the broker's own user may do this".to_owned(), "try it with `sudo`"),
        (OperatorRequest::Cost { by }, _) => {
            let money = driver.status().await.and_then(|status| status.money);
            bills::cost(&shared.history, money, by).await
        }
        (OperatorRequest::History { most, before }, _) => bills::builds(&shared.history, most, before).await,
        // Served in a conversation of its own.
        (OperatorRequest::Log(_), _) => failed("this is no log".to_owned(), "see `broker logs`"),
        (OperatorRequest::Start { pool }, Peer::Owner) => start(&pool, shared, driver).await,
        (OperatorRequest::Drain { target }, Peer::Owner) => match select(&target, driver).await {
            Ok((selection, text)) => {
                driver.event(Event::DrainRequested(selection));
                OperatorReply::Done { text: format!("Draining {text}.") }
            }
            Err(reply) => reply,
        },
        (OperatorRequest::Stop { target }, Peer::Owner) => match select(&target, driver).await {
            Ok((selection, text)) => {
                driver.event(Event::StopRequested(selection));
                OperatorReply::Done { text: format!("Stopping {text}; its builds are tried elsewhere.") }
            }
            Err(reply) => reply,
        },
    }
}

async fn status(shared: &Arc<Shared>, driver: &DriverHandle) -> OperatorReply {
    shared.looks.note();
    match driver.status().await {
        Some(status) => OperatorReply::Status(StatusView::new(&status, shared.uptime())),
        None => failed("the broker is ending".to_owned(), "see its log"),
    }
}

async fn start(pool: &str, shared: &Arc<Shared>, driver: &DriverHandle) -> OperatorReply {
    let Some(spec) = shared.pool(pool) else {
        let names: Vec<_> = shared.pool_names().map(|name| format!("`{name}`")).collect();
        return failed(format!("there is no pool `{pool}`"), &format!("pools: {}", names.join(", ")));
    };
    let status = driver.status().await.unwrap_or_default();
    let alive = status.builders.iter().filter(|builder| builder.pool == spec.name).count();
    if alive >= spec.max_builders as usize {
        return failed(
            format!("pool `{pool}` has {alive} builders, which is its `max-builders`"),
            "raise `max-builders` or stop one",
        );
    }
    let capped =
        status.pools.iter().find(|known| known.name == spec.name).and_then(|pool| pool.capped.clone());
    if let Some(cap) = capped {
        return failed(format!("pool `{pool}` launches nothing: {cap}"), "see `[cost]` in the configuration");
    }
    driver.event(Event::StartRequested(spec.name.clone()));
    OperatorReply::Done { text: format!("Launching a builder in pool `{pool}`.") }
}

/// What an operator means, and how to say it back.
async fn select(target: &Target, driver: &DriverHandle) -> Result<(Selection, String), OperatorReply> {
    let status = driver.status().await.unwrap_or_default();
    match target {
        Target::All => Ok((Selection::All, count(&status))),
        Target::Builder(text) => {
            let found =
                text.parse().ok().filter(|id| status.builders.iter().any(|builder| builder.id == *id));
            match found {
                Some(id) => Ok((Selection::One(id), format!("builder `{id}`"))),
                None => Err(failed(format!("there is no builder `{text}`"), "see `broker builders`")),
            }
        }
    }
}

fn count(status: &Status) -> String {
    match status.builders.len() {
        1 => "1 builder".to_owned(),
        n => format!("{n} builders"),
    }
}

fn failed(reason: String, hint: &str) -> OperatorReply {
    OperatorReply::Failed { reason, hint: Some(hint.to_owned()) }
}
