//! The key `expiry-role`: with which role AWS itself ends an instance whose broker is gone.
//!
//! Whether there is such a role, and what it may do, AWS says when it is used.

use crate::config::problem::{Problems, quote};
use crate::config::section::Section;
use crate::model::ec2::{RoleArn, partition_of};

const KEY: &str = "expiry-role";

/// Reads the key; the role must be one of where the pool launches, as far as the file says where that is.
pub(super) fn read(
    section: &mut Section<'_>,
    regions: &[String],
    problems: &mut Problems,
) -> Option<RoleArn> {
    let text = section.text(KEY, problems)?;
    let Some(role) = RoleArn::parse(text) else {
        let message = format!(
            "{} is not the ARN of a role such as \"arn:aws:iam::123456789012:role/nix-broker-expiry\"; \
             `aws iam get-role --role-name NAME` shows it",
            quote(text)
        );
        section.error(KEY, message, problems);
        return None;
    };
    for region in regions.iter().filter(|region| !role.is_known_in(region)) {
        let message = format!(
            "a role of the partition `{}` is not known in `{region}`, which is in `{}`: use a pool for each, with a \
             role of its own",
            role.partition(),
            partition_of(region)
        );
        section.error(KEY, message, problems);
    }
    Some(role)
}
