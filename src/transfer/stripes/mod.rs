//! One byte stream over several channels: what a builder's sshd lets through one channel per round trip (2 MiB of window,
//! and less of TCP's buffers) is too little for large paths on a fast link with a delay.
//!
//! Owns the two streams ([`StripedWriter`], [`StripedReader`]) and the scripts that are their other ends. A script is
//! plain `sh`: it has a directory with a FIFO for each lane, and moves blocks between the FIFOs and the program as our
//! control lines say. Each lane is a `cat` in a channel of its own. Which channels, how many lanes and when is the
//! broker's.
//!
//! ```text
//!   control: `3 open`, `3 1048576`, `4 open`, `4 300000 z`, ...      lane 3: a block, then the line `.`
//! ```
//!
//! Lane 0 is the channel of the control lines itself: `0 300` has its block, and the `.`, right behind it.
//!
//! With ` z`, a block is a Zstandard frame on its way (see `pack`); that many bytes long as it is sent up, or packed from
//! that many on the way down. A script whose machine has no `zstd` says so, and is never asked.
//!
//! A lane that is lost ends the script: its FIFO ends early, so the line after the block is missing. A block can go into
//! any lane, because the control lines say where the next one is; so lanes may join while the stream flows, and a slow
//! one gets less. Every FIFO is opened for both directions before it is for one: no script ever waits for a lane that
//! does not come, and one whose client is gone reads the end of its control lines, and ends.

mod pack;
mod reader;
mod writer;

use crate::model::StorePath;

pub use reader::StripedReader;
pub use writer::StripedWriter;

/// A lane's number is the descriptor of its FIFO in the script, and its name. Shells know ten.
pub(super) const FIRST_LANE: u8 = 3;
/// Lanes at most.
pub const MAX_LANES: usize = 6;
/// What goes into a lane at a time. A program is started for each; less would cost the builder more, more would stand in
/// a window that is full.
pub(super) const BLOCK: usize = 1 << 20;
/// After every block of a lane: the reader's proof that the block was whole.
pub(super) const END_OF_BLOCK: &[u8] = b".\n";
/// What the script of a lane says when it is ready.
pub const READY: &[u8] = b"ready\n";
/// What the script of a stream says, with `zstd` and without. They are of the same length.
pub const READY_TO_PACK: &[u8] = b"ready zstd\n";
/// See [`READY_TO_PACK`].
pub const READY_PLAIN: &[u8] = b"ready none\n";

/// What comes from another builder takes no longer than this, or comes on another way.
const ELSEWHERE_SECONDS: u32 = 3600;

/// Where on the builder the FIFOs of one stream are.
#[derive(Clone, Debug)]
pub struct Place {
    token: String,
}

/// A channel that joins a stream.
#[derive(Debug)]
pub struct Lane<S> {
    /// Below [`MAX_LANES`], each once.
    pub index: usize,
    /// Its stream; what the lane's program said first has been read.
    pub stream: S,
}

impl<S> Lane<S> {
    fn number(&self) -> u8 {
        FIRST_LANE + u8::try_from(self.index).unwrap_or(0)
    }
}

impl Place {
    /// A place that nobody guesses: the token is random, and only letters and digits.
    pub fn new(token: String) -> Self {
        debug_assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric()), "it stands in a script");
        Self { token }
    }

    fn directory(&self) -> String {
        format!("/tmp/nix-broker-{}", self.token)
    }

    /// Makes the FIFOs and sees whether this machine's `head` leaves in a pipe what it was not asked for.
    fn begin(&self) -> String {
        let directory = self.directory();
        format!(
            "d={directory}; mkdir -m 700 $d && cd $d || exit 9\n\
             trap \"cd /; rm -rf $d\" EXIT; trap \"exit 9\" HUP INT TERM\n\
             mkfifo 3 4 5 6 7 8 && [ \"$(printf abc | {{ head -c 1 >/dev/null; cat; }})\" = bc ] || exit 9\n\
             zstd -qc </dev/null >/dev/null 2>&1 && echo ready zstd || echo ready none\n"
        )
    }

    /// The command that merges lanes into what this command reads, whose output is its own.
    pub fn merge_into(&self, command: &str) -> String {
        let begin = self.begin();
        format!(
            "sh -c '{begin}{{ exec 3<>3 4<>4 5<>5 6<>6 7<>7 8<>8\n\
             while read -r k n z; do case $n$z in\n\
             open) eval \"exec $k<$k\" ;;\n\
             *z) head -c \"$n\" <&\"$k\" | zstd -dqc && read -r m <&\"$k\" && [ \"$m\" = . ] || exit 9 ;;\n\
             *) head -c \"$n\" <&\"$k\" && read -r m <&\"$k\" && [ \"$m\" = . ] || exit 9 ;;\n\
             esac; done; }} | {command}'"
        )
    }

    /// The command that splits the archive of a path into lanes. After an archive that ends too early, or is none at all,
    /// comes nonsense: who reads it must not wait for the rest.
    pub fn split(&self, path: &StorePath) -> String {
        let begin = self.begin();
        format!(
            "sh -c '{begin}exec 9<&0\n\
             {{ nix-store --dump {path} 9<&-; exec yes; }} | {{ exec 3<>3 4<>4 5<>5 6<>6 7<>7 8<>8\n\
             while read -r k n z <&9; do case $n$z in\n\
             open) eval \"exec $k>$k\" ;;\n\
             *z) head -c \"$n\" | zstd -1qc >&\"$k\" || exit 9 ;;\n\
             *) head -c \"$n\" >&\"$k\" || exit 9 ;;\n\
             esac; done; }}'"
        )
    }

    /// The command at the other end of a lane of a stream that goes to the builder.
    pub fn lane_up(&self, index: usize) -> String {
        self.lane(index, "exec 3>$f && echo ready && exec cat >&3")
    }

    /// The same for a lane that another builder opens. Should that one vanish without a word, it does not wait for ever.
    pub fn lane_from_elsewhere(&self) -> String {
        self.lane(0, &format!("exec 3>$f && echo ready && exec timeout {ELSEWHERE_SECONDS} cat >&3"))
    }

    /// The command at the other end of a lane of a stream that comes from the builder.
    pub fn lane_down(&self, index: usize) -> String {
        self.lane(index, "exec 3<$f && echo ready && exec cat <&3")
    }

    /// Waits for the FIFO: the two channels were opened at the same time.
    fn lane(&self, index: usize, then: &str) -> String {
        let (directory, number) = (self.directory(), usize::from(FIRST_LANE) + index);
        format!(
            "sh -c 'f={directory}/{number}; i=0\n\
             until [ -p $f ]; do i=$((i+1)); [ $i -lt 600 ] || exit 9; sleep 0.05; done\n\
             {then}'"
        )
    }
}

#[cfg(test)]
mod tests;
