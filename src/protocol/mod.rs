//! The bytes Nix speaks: nothing in here opens a socket, starts a process or knows what a build is for.
//!
//! - [`hook`] and [`log_line`]: what Nix and its build hook say to each other (blocking).
//! - [`wire`]: integers, padded strings and lists, with bounds on all of them.
//! - [`hash`]: SHA-256 in Nix's spellings.
//! - [`nar`]: the archive format.
//! - [`derivation`]: what is built, as a `.drv` file and on the wire.
//! - [`worker`]: the worker protocol, spoken to and as a `nix-daemon`.

pub mod derivation;
pub mod hash;
pub mod hook;
pub mod log_line;
pub mod nar;
pub mod wire;
pub mod worker;

#[cfg(test)]
mod testing;
