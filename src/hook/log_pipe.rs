//! The build log, fd 4: raw bytes that Nix stores and shows.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::time::{Duration, Instant};

use super::readiness::writable;

/// Where Nix put the writing end. Opened again by its name: a descriptor that was only inherited cannot be owned safely,
/// and the original stays in place for the stock client, which expects it there.
const PATH: &str = "/proc/self/fd/4";
/// Nix may be busy elsewhere for a while; then its reader is not coming.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// The log.
#[derive(Debug)]
pub(super) struct LogPipe {
    pipe: Option<File>,
    inside_a_line: bool,
}

impl LogPipe {
    /// Takes the pipe Nix gave us; without one (a hook started by hand) the log goes nowhere.
    pub(super) fn open() -> Self {
        let pipe = OpenOptions::new().write(true).open(PATH).ok();
        let is_pipe = |file: &File| file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
        Self { pipe: pipe.filter(is_pipe), inside_a_line: false }
    }

    /// Writes bytes of the build's own output. Waits for Nix; the broker holds the rest meanwhile.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (Some(pipe), Some(&last)) = (&mut self.pipe, bytes.last()) else { return Ok(()) };
        self.inside_a_line = last != b'\n';
        pipe.write_all(bytes)
    }

    /// Writes a line of ours, on a line of its own.
    pub(super) fn write_line(&mut self, text: &str) -> io::Result<()> {
        let start = if self.inside_a_line { "\n" } else { "" };
        self.write(format!("{start}{text}\n").as_bytes())
    }

    /// Waits until Nix has read everything. It stops reading the log at our exit, and 4096 bytes a round until then:
    /// what is still in the pipe would be lost, and that is the end, which says why a build failed.
    pub(super) fn drain(&self) {
        let Some(pipe) = &self.pipe else { return };
        let deadline = Instant::now() + DRAIN_LIMIT;
        let mut pause = Duration::from_micros(200);
        while !matches!(rustix::io::ioctl_fionread(pipe), Ok(0) | Err(_)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || is_emptied_within(pipe, left) {
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
}

/// Waits until the pipe is empty; `false` at once when the kernel cannot tell. A pipe of one page takes something when it
/// is empty and not before, so nobody has to ask again and again, in hundreds of hooks at once. It can be made one when
/// what is in it fits.
#[cfg(target_os = "linux")]
fn is_emptied_within(pipe: &File, limit: Duration) -> bool {
    // Rounded up to a page by the kernel.
    rustix::pipe::fcntl_setpipe_size(pipe, 1).is_ok() && writable(pipe, limit).unwrap_or(false)
}

/// Only Linux has pipes that can be made small.
#[cfg(not(target_os = "linux"))]
fn is_emptied_within(_pipe: &File, _limit: Duration) -> bool {
    false
}
