//! nix-broker: a resident broker behind Nix's `build-hook`.
pub mod ipc;
pub mod model;
pub mod provider;
pub mod scheduler;
pub mod ssh;
