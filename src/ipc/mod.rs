//! Bytes between our own processes: `broker-hook` and the command line on one side, the broker on the other.
//!
//! A connection is a Unix socket that carries frames (see [`codec`]): JSON messages, and raw bytes of build log. The
//! client speaks first with [`Hello`], which says what the connection is for and which version of this form it speaks,
//! and is answered with a [`Reply`]. After the one to `Hello::Import`, `Hello::Store` or `Hello::Relay` the rest of the
//! connection is no frames but a raw stream of Nix's worker protocol.
//!
//! Loss of the connection is a statement too: a hook that is gone has cancelled its build.

pub mod codec;
pub mod log;
pub mod message;
pub mod view;

pub use codec::{Frame, FrameError, Message};
pub use log::{LogReply, LogRequest};
pub use message::{
    Ask, CostBy, Hello, HookReply, HookRequest, OperatorReply, OperatorRequest, Reply, Target, VERSION,
    WireFailure,
};
