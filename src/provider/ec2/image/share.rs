//! Other accounts that may launch an image of ours.
//!
//! Owns that both halves are shared: who may launch an image needs its snapshots as well.

use std::collections::BTreeSet;

use super::{ImageError, ours};
use crate::provider::ec2::api::Api;

/// Give or take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// They may launch it.
    Give,
    /// They may no longer.
    Take,
}

/// Shares an image of ours with these accounts, or no longer; all accounts that may launch it then.
pub async fn share(
    api: &Api,
    id: &str,
    accounts: &[String],
    sharing: Sharing,
) -> Result<BTreeSet<String>, ImageError> {
    let image = ours(api, id).await?;
    let give = sharing == Sharing::Give;
    // Whoever may launch an image must be able to, so the snapshots come first, and go last.
    if give {
        for snapshot in &image.snapshots {
            api.share_snapshot(snapshot, accounts, true).await?;
        }
    }
    api.share_image(id, accounts, give).await?;
    if !give {
        for snapshot in &image.snapshots {
            api.share_snapshot(snapshot, accounts, false).await?;
        }
    }
    Ok(api.image_shared_with(id).await?.into_iter().collect())
}
