//! A broker that does what a test tells it, at the other end of the real socket.

#![allow(dead_code)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix_broker::ipc::{Ask, Frame, FrameError, Hello, HookReply, HookRequest, Reply};
use serde::Serialize;

use crate::fake_nix::DEADLINE;

/// A listening socket.
pub(crate) struct FakeBroker {
    listener: UnixListener,
    path: PathBuf,
}

/// One accepted connection. Everything that was received is kept.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
}

impl FakeBroker {
    pub(crate) fn bind(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, path: path.to_owned() }
    }

    /// The next connection.
    pub(crate) fn accept(&self) -> Peer {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    return Peer { stream };
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "nobody connects");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Whether somebody has connected and was not accepted yet.
    pub(crate) fn has_caller(&self) -> bool {
        self.listener.accept().is_ok()
    }

    /// The next connection of a hook, greeted.
    pub(crate) fn accept_hook(&self) -> Peer {
        let mut peer = self.accept();
        assert!(matches!(peer.hello(), Hello::Hook { .. }));
        peer.send(&Reply::Go);
        peer
    }

    /// The next hook's first request, accepted.
    pub(crate) fn accept_build(&self) -> (Peer, Ask) {
        let mut peer = self.accept_hook();
        let ask = peer.ask();
        peer.send(&HookReply::Accept { build: 1, machine: "tiger".into() });
        (peer, ask)
    }

    /// Stops listening, as a broker that dies does; its socket file goes too.
    pub(crate) fn die(self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

impl Peer {
    pub(crate) fn frame(&mut self) -> Result<Frame, FrameError> {
        Frame::read(&mut self.stream)
    }

    pub(crate) fn hello(&mut self) -> Hello {
        self.frame().unwrap().parse().unwrap()
    }

    pub(crate) fn request(&mut self) -> HookRequest {
        self.frame().unwrap().parse().unwrap()
    }

    pub(crate) fn ask(&mut self) -> Ask {
        match self.request() {
            HookRequest::Ask(ask) => ask,
            other => panic!("not an ask: {other:?}"),
        }
    }

    pub(crate) fn inputs(&mut self) -> (Vec<String>, Vec<String>) {
        match self.request() {
            HookRequest::Inputs { paths, wanted_outputs } => (paths, wanted_outputs),
            other => panic!("no inputs: {other:?}"),
        }
    }

    pub(crate) fn send(&mut self, message: &impl Serialize) {
        Frame::message(message).unwrap().write(&mut self.stream).unwrap();
    }

    pub(crate) fn log(&mut self, bytes: &[u8]) {
        Frame::Log(bytes.to_vec()).write(&mut self.stream).unwrap();
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Whether the hook has hung up: how it cancels.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
