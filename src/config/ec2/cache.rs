//! The keys `cache`, `cache-public-key` and `cache-secret-key-file`: a binary cache next to the builders.
//!
//! Whether the cache answers, and whether the keys belong together, is found out by the builders.

use crate::config::problem::{Problems, quote};
use crate::config::section::Section;
use crate::model::ec2::CacheSpec;

/// Where a builder can put what it built, and take it from.
const SCHEMES: [&str; 4] = ["s3://", "https://", "http://", "file:///"];
const PUBLIC_KEY: &str = "cache-public-key";
const SECRET_KEY_FILE: &str = "cache-secret-key-file";

/// Reads the three keys; `None` without `cache`.
pub(super) fn read(section: &mut Section<'_>, problems: &mut Problems) -> Option<CacheSpec> {
    let url = section.text("cache", problems);
    let public_key = section.text(PUBLIC_KEY, problems);
    let secret_key_file = section.absolute_path(SECRET_KEY_FILE, problems);
    let Some(url) = url else {
        for key in [PUBLIC_KEY, SECRET_KEY_FILE] {
            if section.has(key) {
                section.error(key, "without `cache`: say which", problems);
            }
        }
        return None;
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?&=%+,".contains(&byte);
    if !SCHEMES.iter().any(|scheme| url.starts_with(scheme)) || !url.bytes().all(is_plain) {
        let message =
            format!("{} is no binary cache such as \"s3://bucket?region=eu-central-1\"", quote(url));
        section.error("cache", message, problems);
    }
    let Some(public_key) = public_key else {
        let message = "without `cache-public-key` builders would trust nothing of it";
        section.error("cache", message, problems);
        return None;
    };
    if !is_key(public_key) {
        let message = format!(
            "{} is not a public key `name:base64`, as `nix key convert-secret-to-public` prints it",
            quote(public_key)
        );
        section.error(PUBLIC_KEY, message, problems);
    }
    Some(CacheSpec { url: url.to_owned(), public_key: public_key.to_owned(), secret_key_file })
}

/// An ed25519 key has 32 bytes, which are 44 characters.
fn is_key(text: &str) -> bool {
    let Some((name, key)) = text.split_once(':') else { return false };
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let in_key = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    !name.is_empty() && name.bytes().all(in_name) && key.len() == 44 && key.bytes().all(in_key)
}
