//! What EC2 sells, as far as choosing a machine needs it: instance types and their prices, which processor each family
//! has, whose code that processor runs, and how to see on the machine that it does.
//!
//! Tables and arithmetic only. Which of it suits a pool now is decided in the provider; the configuration needs the same
//! tables to say what a pool offers, so they are below both.

pub mod cpu_flags;
pub mod microarch;
pub mod size;
pub mod types;

pub use cpu_flags::missing_flags;
pub use microarch::{GccarchError, Processor};
pub use types::{Architecture, Catalog, InstanceType};
