//! The tags by which what a broker has is found again: written by [`super::launch`] and the makers of networks and images,
//! read by every sweep.
//!
//! Owns their names. Tags of one kind of thing alone (a launch, a network, an image) are with that kind.

/// What everything of any broker carries, instance, network or image: what a person's policy can be about.
pub(super) const MANAGED_TAG: &str = "ManagedBy";
/// Its value.
pub(super) const MANAGED_BY: &str = "nix-broker";
/// Names the broker an instance belongs to.
pub(super) const BROKER_TAG: &str = "nix-broker:broker";
/// Names the pool.
pub(super) const POOL_TAG: &str = "nix-broker:pool";
/// Says until when an instance is wanted, for `broker sweep` on any machine. Renewed while it is.
pub(super) const EXPIRES_TAG: &str = "nix-broker:expires-at";
/// Of an instance that AWS itself ends when it is too old: it has a schedule of its name.
pub(super) const EXPIRY_TAG: &str = "nix-broker:expiry";
