//! An image of ours in another region.
//!
//! Owns that a copy carries the tags by which it is found and ended again, and that there is but one of a content.

use super::upload::{available, find_content};
use super::{CONTENT_TAG, ImageError, ours};
use crate::provider::ec2::api::{Api, ErrorClass};
use crate::provider::random;

/// Copies an image of ours from one region to another, until it can be launched there; its id, and whether it was there
/// before.
pub async fn copy(from: &Api, to: &Api, id: &str) -> Result<(String, bool), ImageError> {
    let image = ours(from, id).await?;
    if let Some(content) = image.tags.get(CONTENT_TAG)
        && let Some(there) = find_content(to, content, &image.arch).await?
    {
        return Ok((there.id, true));
    }
    let token = random::token().map_err(|source| ImageError::Read { path: "/dev/urandom".into(), source })?;
    // EC2's own tags cannot be set by anybody else.
    let tags = image.tags.iter().filter(|(key, _)| !key.starts_with("aws:"));
    let tags = tags.map(|(key, value)| (key.clone(), value.clone())).collect();
    let copy = to.copy_image(&image, from.region(), &token, &tags).await?;
    match available(to, &copy).await {
        Err(error @ ImageError::Failed { .. }) => {
            // Its snapshot, if there is one, is without an image then, which `broker image prune` ends.
            match to.deregister_image(&copy).await {
                Err(refusal) if refusal.class != ErrorClass::NotFound => Err(refusal.into()),
                Ok(()) | Err(_) => Err(error),
            }
        }
        other => other.map(|()| (copy, false)),
    }
}
