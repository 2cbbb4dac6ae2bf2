//! The way in through a socket, for programs that take `AWS_ENDPOINT_URL_EC2`.
//!
//! Owns a small HTTP/1.1 server on a thread of its own, so that a test may block its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use nix_broker::provider::ec2::api::{WireLost, WireRequest, WireResponse};

use super::FakeEc2;

/// What a request may have.
const MAX_HEADER: usize = 32 * 1024;
const MAX_BODY: usize = 1024 * 1024;
/// A connection on which nothing comes is closed.
const IDLE: Duration = Duration::from_secs(60);

/// The server; it ends when this is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// What `AWS_ENDPOINT_URL_EC2` is set to.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Serves this account on a free port of the loopback interface.
pub(crate) fn serve(fake: &FakeEc2) -> Server {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let fake = fake.clone();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let accept = async {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    drop(tokio::spawn(converse(stream, fake.clone())));
                }
            };
            tokio::select! {
                () = accept => {}
                _ = stopped => {}
            }
        });
    });
    Server { address, stop: Some(stop), thread: Some(thread) }
}

async fn converse(stream: TcpStream, fake: FakeEc2) {
    let mut stream = BufReader::new(stream);
    while let Ok(Some(request)) = tokio::time::timeout(IDLE, read(&mut stream)).await {
        match fake.answer(request).await {
            Ok(response) => {
                if write(&mut stream, &response).await.is_err() {
                    return;
                }
            }
            // To whoever waits for an answer both look the same: the connection is gone.
            Err(WireLost::Reset | WireLost::Refused) => return,
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<WireRequest> {
    let (mut total, mut length) = (0, 0);
    let (mut target, mut headers) = (String::new(), BTreeMap::new());
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut *stream).take(u64::try_from(MAX_HEADER).unwrap());
        let read = limited.read_until(b'\n', &mut line).await.ok()?;
        total += read;
        if read == 0 || total > MAX_HEADER {
            return None;
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if target.is_empty() {
            line.rsplit_once(' ')?.0.clone_into(&mut target);
            continue;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    let authorization = headers.get("authorization").cloned().unwrap_or_default();
    if length > MAX_BODY {
        return None;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(WireRequest { target, authorization, headers, body })
}

async fn write(stream: &mut BufReader<TcpStream>, response: &WireResponse) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {} Whatever\r\nContent-Type: text/xml;charset=UTF-8\r\nContent-Length: {}\r\n\r\n",
        response.status,
        response.body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&response.body).await?;
    stream.flush().await
}
