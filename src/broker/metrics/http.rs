//! Serves the page: HTTP/1.1, one `GET /metrics` per connection, on loopback or on a Unix socket.
//!
//! Whoever asks is not trusted: what he sends has a greatest length and a deadline, and few are served at once.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::render::render;
use crate::broker::Shared;
use crate::broker::driver::DriverHandle;
use crate::config::MetricsAddress;

/// Bytes of a request at most.
const MAX_REQUEST: usize = 8 << 10;
/// For a request to come, and again for the answer to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Served at once; more wait to be accepted.
const MAX_CLIENTS: usize = 16;
/// After an accept failed (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves metrics at this address until it is dropped. An address that is taken is logged: nobody's build waits for it.
pub(crate) async fn listen(address: MetricsAddress, shared: Arc<Shared>, driver: DriverHandle) {
    let served = match &address {
        MetricsAddress::Tcp(address) => tcp(*address, shared, driver).await,
        MetricsAddress::Unix(path) => unix(path, shared, driver).await,
    };
    if let Err(error) = served {
        tracing::error!(reason = %crate::broker::chain(&error), "there are no metrics; builds go on");
    }
}

async fn tcp(address: SocketAddr, shared: Arc<Shared>, driver: DriverHandle) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("listen at `{address}` for metrics"))?;
    tracing::info!(%address, "serving metrics");
    accept(|| async { Ok(listener.accept().await?.0) }, &shared, &driver).await
}

async fn unix(path: &Path, shared: Arc<Shared>, driver: DriverHandle) -> anyhow::Result<()> {
    // The same care as for the broker's own socket: only what a dead broker left is replaced. And it is open to all users:
    // metrics say no more than the status.
    let listener = crate::broker::listener::bind(path).await?;
    let _removed_at_the_end = Removed(path);
    tracing::info!(path = %path.display(), "serving metrics");
    accept(|| async { Ok(listener.accept().await?.0) }, &shared, &driver).await
}

/// Serves whoever comes, for ever.
async fn accept<S, F>(next: impl Fn() -> F, shared: &Arc<Shared>, driver: &DriverHandle) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let seat = Arc::clone(&clients).acquire_owned().await?;
        match next().await {
            Ok(stream) => spawn(stream, seat, shared, driver),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A socket's file, gone with its listener.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(self.0);
    }
}

fn spawn<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    seat: OwnedSemaphorePermit,
    shared: &Arc<Shared>,
    driver: &DriverHandle,
) {
    let (shared, driver) = (Arc::clone(shared), driver.clone());
    tokio::spawn(async move {
        let page = async || {
            shared.looks.note();
            let status = driver.status().await?;
            Some(render(&status, &shared.metrics.counts(), shared.uptime(), env!("CARGO_PKG_VERSION")))
        };
        if let Err(error) = serve(stream, page).await {
            tracing::debug!(error = %crate::broker::chain(&error), "a client of the metrics");
        }
        drop(seat);
    });
}

/// One request and its answer.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    page: impl AsyncFnOnce() -> Option<String>,
) -> anyhow::Result<()> {
    let request =
        tokio::time::timeout(PATIENCE, read_request(&mut stream)).await.context("wait for a request")??;
    let answer = match request {
        Request::Metrics => match page().await {
            Some(page) => answer("200 OK", &page),
            None => answer("503 Service Unavailable", "the broker is ending\n"),
        },
        Request::Elsewhere => answer("404 Not Found", "metrics are at /metrics\n"),
        Request::NoGet => answer("405 Method Not Allowed", "metrics are read with GET\n"),
        Request::Garbled => answer("400 Bad Request", "this is not HTTP\n"),
        Request::TooLong => answer("431 Request Header Fields Too Large", "the request is too long\n"),
    };
    let write = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    tokio::time::timeout(PATIENCE, write).await.context("answer a request")??;
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Metrics,
    Elsewhere,
    NoGet,
    Garbled,
    TooLong,
}

/// Reads to the empty line that ends the head.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Request> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= MAX_REQUEST {
            return Ok(Request::TooLong);
        }
        let n = stream.read(&mut piece).await?;
        if n == 0 {
            return Ok(Request::Garbled);
        }
        head.extend_from_slice(&piece[..n]);
    }
    Ok(understand(&head))
}

fn understand(head: &[u8]) -> Request {
    let line = head.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
    let words: Vec<_> = line.unwrap_or_default().split(' ').collect();
    match words[..] {
        [method, target, version] if version.starts_with("HTTP/1.") => {
            match (method, target.split('?').next()) {
                ("GET", Some("/metrics")) => Request::Metrics,
                ("GET", _) => Request::Elsewhere,
                (_, _) => Request::NoGet,
            }
        }
        _ => Request::Garbled,
    }
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(request: &[u8]) -> String {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let served = tokio::spawn(serve(server, async || Some("page\n".to_owned())));
        client.write_all(request).await.unwrap();
        // A half-closed client still gets its answer.
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        served.await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn a_scrape_gets_the_page_and_everything_else_a_reason() {
        let page = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\npage\n"), "{page}");
        assert!(page.contains("Content-Length: 5\r\n") && page.contains("version=0.0.4"), "{page}");
        for (request, status) in [
            (&b"GET /metrics?x=1 HTTP/1.0\r\n\r\n"[..], "200"),
            (b"GET / HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"nonsense\r\n\r\n", "400"),
            (b"GET /metrics HTTP/1.1\r\nHost", "400"),
            (b"\xff\xfe\r\n\r\n", "400"),
            (b"", "400"),
        ] {
            let answer = ask(request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        }
        let endless = [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 20 << 10]].concat();
        assert!(ask(&endless).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_not_waited_for() {
        let (_client, server) = tokio::io::duplex(1024);
        let served = serve(server, async || None).await;
        assert!(served.unwrap_err().to_string().contains("wait for a request"));
    }
}
