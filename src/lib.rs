//! nix-broker: a resident broker behind Nix's `build-hook`.
pub mod cli;
pub mod config;
pub mod hook;
pub mod ipc;
pub mod model;
pub mod protocol;
pub mod scheduler;
pub mod ssh;
