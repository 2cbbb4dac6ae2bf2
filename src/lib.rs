//! nix-broker: a resident broker behind Nix's `build-hook`.
//!
//! # The way of one build
//!
//! ```text
//!  nix-daemon ──try──▶ broker-hook ──Ask──▶ broker: verdict from memory          (control: the owner loop)
//!             ◀─# accept─            ◀──────
//!             ──inputs, outputs──▶   ──Inputs──▶ queue ─▶ placement ─▶ [launch ─▶ boot ─▶ dial ─▶ ready] ─▶ lease
//!                                                  │
//!             ◀── build log (fd 4), notes (fd 2) ◀── upload missing inputs ─▶ BuildDerivation ─▶ outputs   (data: tasks)
//!                                                  │
//!             broker-hook runs the importer ─────▶ stock `nix __build-remote`, one machine line:
//!                                                   ssh-ng://localhost?remote-program=<broker-hook as store endpoint>
//!             ◀── exit status ──      ◀── Outcome
//! ```
//!
//! Why an importer: while a hook runs, Nix holds the locks of the output paths, so adding them through the local daemon
//! would wait for ever. Stock `nix __build-remote` is the one program that may write them, on every version. It runs
//! last, against an endpoint on this machine that has the outputs already.
//!
//! | hop | where |
//! |---|---|
//! | Nix and the hook talk | [`protocol::hook`], [`hook`] |
//! | hook and broker talk | [`ipc`], `broker::hook_client` |
//! | accept or decline | [`scheduler::Offers::answer`] |
//! | a processor that only the inputs name | `broker::lineage` |
//! | queue, placement, launches, retries | [`scheduler`] |
//! | a machine's life | `broker::builder_task`, [`provider`], [`ssh`] |
//! | one attempt | `broker::build_task`: [`transfer`], [`protocol::worker`] |
//! | how long it will take | [`predict`] |
//! | what happened, and what it cost | [`scheduler`] says it, [`history`] keeps it |
//! | what other pools would have done with it | [`simulate`] |
//! | outputs into the local store | `hook::importer`, `broker::endpoint_client`, [`endpoint`] |
//!
//! # Layers
//!
//! A module imports only from the layers below its own; `tests/layers.rs` holds the table and checks it.
//!
//! ```text
//! face      hook, cli                       what Nix and people see
//! broker    broker, simulate                the only place that spawns, sleeps and reads the clock; the same without
//! effects   provider, ssh, history, transfer ◀ endpoint
//! pure      scheduler, predict, protocol, ipc, config
//! tables    catalog                         what EC2 sells
//! nouns     model
//! ```
//!
//! # Invariants
//!
//! - The verdict comes from memory and from the derivation's file, which the hook brings; only what lies below it and was
//!   never seen has to be read: nothing slow happens between Nix's question and our answer.
//! - The scheduler is pure. What it wants is an [`scheduler::Action`]; what happens to it is an [`scheduler::Event`].
//! - A connection whose operation did not end cleanly is never reused.
//! - Every instance that was launched is terminated: by its builder task, or by the next start of the broker.
//! - Loss of a hook's socket is cancellation of its build.

pub mod broker;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod endpoint;
pub mod history;
pub mod hook;
pub mod ipc;
pub mod model;
pub mod predict;
pub mod protocol;
pub mod provider;
pub mod scheduler;
pub mod simulate;
pub mod ssh;
pub mod transfer;
