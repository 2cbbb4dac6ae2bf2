//! The store endpoint: what a Nix client starts as `remote-program`. It opens the right door of the broker and then only
//! moves bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::{broker_client, complain};
use crate::ipc::message::BUILD_VARIABLE;
use crate::ipc::{Frame, FrameError, Hello, Reply, VERSION};

/// How long the broker may take to open: it may have to launch a builder first.
const GO_LIMIT: Duration = Duration::from_secs(600);
/// What the thread that copies needs.
const COPIER_STACK: usize = 64 << 10;
/// What a pipe holds.
const BUFFER: usize = 64 << 10;

/// Why there is no store here.
#[derive(Debug, thiserror::Error)]
enum EndpointError {
    #[error("connect to the broker at `{path}`")]
    Connect { path: PathBuf, source: io::Error },
    #[error("the broker refuses: {0}")]
    Refused(String),
    #[error("talk to the broker")]
    Broken(#[from] FrameError),
    #[error("relay the store's bytes")]
    Relay(#[source] io::Error),
}

/// Is the store of a pool, of one finished build, or of the broker as a whole.
pub(super) fn run(socket: &Path, pool: Option<String>) -> ExitCode {
    let token = std::env::var(BUILD_VARIABLE).ok().filter(|token| !token.is_empty());
    let hello = match (token, pool) {
        (Some(token), _) => Hello::Import { version: VERSION, token },
        (None, Some(pool)) => Hello::Relay { version: VERSION, pool },
        (None, None) => Hello::Store { version: VERSION },
    };
    match serve(socket, &hello) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(socket: &Path, hello: &Hello) -> Result<(), EndpointError> {
    let mut broker = broker_client::open(socket)
        .map_err(|source| EndpointError::Connect { path: socket.to_owned(), source })?;
    let greeting = Frame::message(hello)?.encode()?;
    // A broker that refuses may be gone before we have spoken, and has said why.
    let _read_next = broker.write_all(&greeting);
    broker.set_read_timeout(Some(GO_LIMIT)).map_err(EndpointError::Relay)?;
    match Frame::read(&mut broker)?.parse()? {
        Reply::Go => {}
        Reply::Refused { why } => return Err(EndpointError::Refused(why)),
    }
    broker.set_read_timeout(None).map_err(EndpointError::Relay)?;
    relay(broker).map_err(EndpointError::Relay)
}

/// Copies both ways until the broker's side has ended. The client's end is passed on as half a close.
fn relay(mut broker: UnixStream) -> io::Result<()> {
    let mut to_broker = broker.try_clone()?;
    let mut input = file(rustix::stdio::stdin().as_fd())?;
    let mut output = file(rustix::stdio::stdout().as_fd())?;
    std::thread::Builder::new().stack_size(COPIER_STACK).spawn(move || {
        // Whichever side failed, the other one has to learn that nothing more comes.
        let _ended = copy(&mut input, &mut to_broker);
        let _closed = to_broker.shutdown(Shutdown::Write);
    })?;
    copy(&mut broker, &mut output)
}

/// Copies by hand. `io::copy` would have the kernel do it (`splice`), which holds the pipe's lock while it waits for the
/// socket: whoever reads the pipe then waits for the broker's *next* bytes to get the last ones, and both wait for ever.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A descriptor without a buffer: a reply must not wait for a newline.
fn file(descriptor: BorrowedFd<'_>) -> io::Result<File> {
    Ok(descriptor.try_clone_to_owned()?.into())
}
