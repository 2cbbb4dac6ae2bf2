//! Store paths from one builder to another, while the broker says what they are.
//!
//! Owns the script of the builder that has the paths, and the stream to the nix-daemon of the one that wants them. That
//! stream is put together there by the script of `stripes`: what the broker says (which path, which hash, which size,
//! what it refers to) comes over the broker's own channel, and the archives over a lane that the other builder opens. So
//! the builder that sends can do no more than give bytes, which have to be the right ones: the daemon compares their hash
//! with what the broker said. Which builders, and how one gets to the other, is the broker's.
//!
//! ```text
//!   broker ── `0 300`, 300 bytes, `.`, `3 open`, `3 1048576`, ... ──▶ script ──▶ nix-daemon
//!   the other builder ── a block, `.`, a block, `.`, ... ──▶ lane 3 ────┘
//! ```

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use super::stripes::{BLOCK, END_OF_BLOCK, FIRST_LANE};
use super::upload::Cargo;

/// What the other builder reports for each block that it has sent.
pub const SENT: &str = "+";

/// Bytes of ours that wait for the control channel, before whoever writes has to.
const MAX_WAITING: usize = 1 << 20;

/// Where the wanting builder is, for the one that sends, and what it is let in with.
#[derive(Debug)]
pub struct Way<'a> {
    /// Name or address.
    pub address: &'a str,
    /// TCP port of its sshd.
    pub port: u16,
    /// The user to log in as.
    pub user: &'a str,
    /// Its host keys, in OpenSSH form: no other is let through.
    pub host_keys: &'a [String],
    /// A private key, in OpenSSH form.
    pub private_key: &'a str,
    /// Its certificate.
    pub certificate: &'a str,
}

/// The command on the builder that sends. It reads what [`errand`] says, hands on what the other side of its connection
/// says, and [`SENT`] for each block; it ends well when everything has been sent. The key is in a file as long as it runs.
pub fn errand_command(token: &str) -> String {
    debug_assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric()), "it stands in a script");
    format!(
        "sh -c 'umask 077; d=/tmp/nix-broker-{token}; mkdir $d && cd $d || exit 9\n\
         trap \"cd /; rm -rf $d\" EXIT; trap \"exit 9\" HUP INT TERM\n\
         while read -r f l; do case $f in key|cert|known) printf \"%s\\n\" \"$l\" >>$f ;; *) break ;; esac; done\n\
         read -r u p a && exec 9>&1 || exit 9\n\
         b() {{ head -c $1 && echo . && echo {SENT} >&9; }}\n\
         while read -r s n r; do nix-store --dump \"$s\" </dev/null | {{\n\
         while [ $n -gt 0 ]; do b {BLOCK} || exit 9; n=$((n-1)); done; [ $r = 0 ] || b $r; }} || exit 9\n\
         done | ssh -F none -T -a -x -l \"$u\" -p \"$p\" -i key -o CertificateFile=cert -o IdentitiesOnly=yes \
         -o IdentityAgent=none -o BatchMode=yes -o PreferredAuthentications=publickey -o StrictHostKeyChecking=yes \
         -o UserKnownHostsFile=$d/known -o GlobalKnownHostsFile=none -o HostKeyAlias=builder -o CheckHostIP=no \
         -o UpdateHostKeys=no -o ControlPath=none -o ConnectTimeout={CONNECT_SECONDS} -o ServerAliveInterval=15 \
         -o Ciphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com -- \"$a\"'"
    )
}

/// A builder that does not answer another in this time is out of its reach.
const CONNECT_SECONDS: u32 = 3;

/// What the sending builder has to know: the way, and which paths.
pub fn errand(way: &Way<'_>, cargo: &Cargo) -> String {
    let mut said = String::new();
    let mut file = |name: &str, content: &str| {
        for line in content.lines() {
            said.push_str(&format!("{name} {line}\n"));
        }
    };
    file("key", way.private_key);
    file("cert", way.certificate);
    for key in way.host_keys {
        file("known", &format!("builder {key}"));
    }
    said.push_str(&format!(".\n{} {} {}\n", way.user, way.port, way.address));
    for (path, size) in cargo.sizes() {
        let block = BLOCK as u64;
        said.push_str(&format!("{path} {} {}\n", size / block, size % block));
    }
    said
}

/// Paths of these that another builder may bring, and what goes before and after them.
#[derive(Debug)]
pub struct Parts {
    /// Refers to none of the others.
    pub before: Cargo,
    /// From the other builder.
    pub direct: Cargo,
    /// Refers to those.
    pub after: Cargo,
}

/// The stream to the daemon. What is written is the broker's own; for the rest there is [`Elsewhere`].
#[derive(Debug)]
pub struct DirectWriter<C> {
    control: C,
    script: Arc<Mutex<Script>>,
}

/// Puts blocks that come from elsewhere into a stream.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    script: Arc<Mutex<Script>>,
}

/// What the script is told.
#[derive(Debug, Default)]
struct Script {
    /// Not in the script yet.
    own: Vec<u8>,
    told: Vec<u8>,
    sent: usize,
}

impl Script {
    /// What was written goes before whatever comes next.
    fn tell_own(&mut self) {
        if !self.own.is_empty() {
            let own = std::mem::take(&mut self.own);
            self.told.extend_from_slice(format!("0 {}\n", own.len()).as_bytes());
            self.told.extend_from_slice(&own);
            self.told.extend_from_slice(END_OF_BLOCK);
        }
    }

    fn tell_lane(&mut self, what: &str) {
        self.tell_own();
        self.told.extend_from_slice(format!("{FIRST_LANE} {what}\n").as_bytes());
    }
}

impl<C: AsyncWrite + Unpin> DirectWriter<C> {
    /// A stream to the script behind this channel, whose lane has been opened from elsewhere.
    pub fn new(control: C) -> (Self, Elsewhere) {
        let mut script = Script::default();
        script.tell_lane("open");
        let script = Arc::new(Mutex::new(script));
        (Self { control, script: Arc::clone(&script) }, Elsewhere { script })
    }

    /// Sends all that the script is to be told.
    fn poll_tell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { control, script } = self;
        let mut script = script.lock();
        while script.sent < script.told.len() {
            let sent = ready!(Pin::new(&mut *control).poll_write(cx, &script.told[script.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            script.sent += sent;
        }
        script.told.clear();
        script.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for DirectWriter<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.script.lock().told.len() >= MAX_WAITING {
            ready!(self.poll_tell(cx))?;
        }
        let mut script = self.script.lock();
        let taken = bytes.len().min(BLOCK - script.own.len());
        script.own.extend_from_slice(&bytes[..taken]);
        if script.own.len() >= BLOCK {
            script.tell_own();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.script.lock().tell_own();
        ready!(self.poll_tell(cx))?;
        Pin::new(&mut self.control).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.control).poll_shutdown(cx)
    }
}

impl Elsewhere {
    /// So many bytes of the lane come next.
    pub fn take(&self, bytes: u64) {
        self.script.lock().tell_lane(&bytes.to_string());
    }
}
