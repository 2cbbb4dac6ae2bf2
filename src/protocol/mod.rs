//! Bytes that Nix and we agree on.
pub mod hook;
pub mod log_line;
