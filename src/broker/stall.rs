//! The bound of a transfer: not how long it takes, but how long it may stand still.

use std::time::Duration;

use crate::transfer::Beat;

/// A dead connection is noticed in about a minute by SSH itself. This is for a living one behind which a `nix-daemon`
/// hangs; one that registers a large path, or waits for somebody else's lock on it, says nothing for a while either.
const STALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Does the work, unless nothing moves for too long.
pub(crate) fn unless_stalled<T>(
    beat: &Beat,
    work: impl Future<Output = anyhow::Result<T>>,
) -> impl Future<Output = anyhow::Result<T>> {
    unless_still(STALL_LIMIT, beat, work)
}

/// Does the work, unless nothing moves for so long.
pub(crate) async fn unless_still<T>(
    limit: Duration,
    beat: &Beat,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::pin!(work);
    loop {
        let before = beat.count();
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(limit) => {
                if beat.count() == before {
                    anyhow::bail!("nothing has moved for {} minutes", limit.as_secs() / 60);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_is_fine_and_still_is_not() {
        let beat = Beat::default();
        let slow = async {
            for _ in 0..10 {
                tokio::time::sleep(STALL_LIMIT * 3 / 4).await;
                beat.add(1);
            }
            Ok(())
        };
        unless_stalled(&beat, slow).await.unwrap();
        let still = std::future::pending::<anyhow::Result<()>>();
        assert!(unless_stalled(&beat, still).await.unwrap_err().to_string().contains("15 minutes"));
    }
}
