//! What an EC2 instance runs, run for real: user-data, dead-man and heartbeat in the shells they meet, on machines that are
//! directories. What is left to a real instance: that these programs do what they are told.

#![cfg(feature = "ec2")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod boot;
mod dead_man;
mod heartbeat;
mod machine;
