//! SSH: from an address and the keys that prove it to byte streams of a program that runs there.
//!
//! Owns everything about the SSH protocol: keys, host key checks, connections, channels, and how many of them one
//! builder's sshd is asked for. Nobody else knows which library does it. What is said over a channel, which machine to
//! dial and when to try again is for its callers.
//!
//! - [`Session`]: one connection, authenticated. [`Channel`]: one program on the other side.
//! - [`Pass`]: what another machine of ours needs to reach one program.
//! - [`Sessions`]: all connections to one builder, and the rule how channels are spread over them.

mod channel;
mod dial;
mod key;
mod pass;
mod proxy;
mod session;
mod sessions;
mod severable;
#[cfg(test)]
mod tests;

pub use channel::{Channel, Exit, Remote, Stdin, Stdout};
pub use dial::{DialError, Phase, Target};
pub use key::{ClientKey, HostKey, HostKeyPair, KeyError};
pub use pass::{Pass, PassError};
pub use session::{ExecError, Output, RunError, Session};
pub use sessions::{Load, Losses, OpenError, RunOnceError, Sessions};
