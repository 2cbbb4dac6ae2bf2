//! What the user-data says about a binary cache: where it is, whom to trust, and how what was built gets there.
//!
//! Builds never wait for it: what is uploaded is queued (`cache.sh`), and a cache that does not answer is passed over.

use std::fmt;

use super::user_data::UserDataError;

/// What runs on the machine.
const SCRIPT: &str = include_str!("cache.sh");
/// Where it is put: in memory, as everything that the user-data brings.
const PLACE: &str = "/run/nix-broker/cache.sh";

/// A binary cache that a machine takes from, and may put into.
#[derive(Clone, Copy)]
pub struct BootCache<'a> {
    /// A store that Nix knows, such as `s3://bucket?region=eu-central-1`.
    pub url: &'a str,
    /// Whose signatures are trusted there: `name:base64`.
    pub public_key: &'a str,
    /// What the machine signs with what it puts there. Secret. Without it the machine only takes.
    pub secret_key: Option<&'a str>,
}

impl fmt::Debug for BootCache<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootCache")
            .field("url", &self.url)
            .field("public_key", &self.public_key)
            .field("uploads", &self.secret_key.is_some())
            .finish()
    }
}

impl BootCache<'_> {
    /// The lines of nix.conf.
    pub(super) fn nix_settings(&self) -> Result<Vec<(String, String)>, UserDataError> {
        if !is_store_url(self.url) {
            return Err(UserDataError::CacheUrl(self.url.chars().take(80).collect()));
        }
        if !is_key(self.public_key) {
            return Err(UserDataError::CachePublicKey(self.public_key.chars().take(80).collect()));
        }
        let mut settings = vec![
            ("extra-substituters", self.url),
            ("extra-trusted-public-keys", self.public_key),
            // One that does not answer must not be the end of a build, nor hold it up for long.
            ("fallback", "true"),
            ("connect-timeout", "5"),
        ];
        if self.secret_key.is_some() {
            settings.push(("post-build-hook", PLACE));
        }
        Ok(settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// The step of the boot that starts the uploads.
    pub(super) fn step(&self) -> Result<String, UserDataError> {
        let Some(secret_key) = self.secret_key.map(str::trim) else { return Ok(String::new()) };
        if !is_key(secret_key) {
            return Err(UserDataError::CacheSecretKey);
        }
        Ok(format!(
            r#"cat >"$run/cache.sh" <<'CACHE'
{script}
CACHE
echo '{url}' >"$run/cache-url"
(umask 077; echo '{secret_key}' >"$run/cache-key")
start_uploads() {{
  chmod 755 "$run/cache.sh" || return 1
  ! systemctl is-active --quiet nix-broker-cache.service || return 0
  systemd-run --quiet --unit=nix-broker-cache --property=Restart=always --property=RestartSec=10 \
    --property=IOSchedulingClass=idle /bin/sh "$run/cache.sh" upload
}}
start_uploads 2>"$run/errors" || phase "nothing is put into the cache: $(complaint)"
: >"$run/errors""#,
            script = without_comments(SCRIPT),
            url = self.url,
        ))
    }
}

/// EC2 counts every byte.
fn without_comments(script: &str) -> String {
    let is_comment = |line: &str| line.trim_start().starts_with('#') && !line.starts_with("#!");
    script.lines().filter(|line| !is_comment(line)).collect::<Vec<_>>().join("\n")
}

/// A store that a builder can reach, of characters that mean nothing to a shell in quotes, nor to Nix's settings.
pub(crate) fn is_store_url(url: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?&=%+,".contains(&byte);
    let has_scheme = ["s3://", "https://", "http://", "file:///"]
        .iter()
        .any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    has_scheme && url.len() <= 512 && url.bytes().all(is_plain)
}

/// A key of Nix's: a name, and base64.
pub(crate) fn is_key(key: &str) -> bool {
    let Some((name, base64)) = key.split_once(':') else { return false };
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let in_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    !name.is_empty() && name.bytes().all(in_name) && base64.len() >= 40 && base64.bytes().all(in_base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: &str = "cache-1:PxOXCzycYaWCvKr6Fxsj7Y6u5NL7y7SY44G0vqgNV00=";

    #[test]
    fn a_cache_to_take_from_needs_no_step_and_one_to_fill_has_a_hook() {
        let url = "s3://bucket?region=eu-central-1";
        let mut cache = BootCache { url, public_key: PUBLIC, secret_key: None };
        let names = |cache: &BootCache<'_>| -> Vec<String> {
            cache.nix_settings().unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(cache.step().unwrap(), "");
        assert!(!names(&cache).contains(&"post-build-hook".to_owned()));
        let secret = format!("{PUBLIC}{PUBLIC}",).replace("=cache-1:", "");
        cache.secret_key = Some(&secret);
        assert!(names(&cache).contains(&"post-build-hook".to_owned()));
        let step = cache.step().unwrap();
        assert!(step.contains(url) && step.contains("OUT_PATHS") && !step.contains("# Keeps"), "{step}");
        assert!(!format!("{cache:?}").contains(&secret));
    }

    #[test]
    fn what_is_no_store_or_no_key_is_refused() {
        for url in [
            "",
            "s3://",
            "ssh-ng://host",
            "https://a b",
            "https://a'b",
            "https://a$b",
            "file://here",
            "https://a#b",
        ] {
            let cache = BootCache { url, public_key: PUBLIC, secret_key: None };
            assert_eq!(cache.nix_settings(), Err(UserDataError::CacheUrl(url.to_owned())), "{url}");
        }
        for key in ["", "cache-1", "cache-1:short", "a b:PxOXCzycYaWCvKr6Fxsj7Y6u5NL7y7SY44G0vqgNV00="] {
            let cache = BootCache { url: "https://c", public_key: key, secret_key: Some(key) };
            assert!(matches!(cache.nix_settings(), Err(UserDataError::CachePublicKey(_))), "{key}");
            assert_eq!(cache.step(), Err(UserDataError::CacheSecretKey), "{key}");
        }
    }
}
