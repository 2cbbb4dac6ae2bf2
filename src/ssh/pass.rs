//! A pass: what lets one machine of ours reach one program on another, once, without a key of ours.
//!
//! Owns the certificate: a fresh key that lives for minutes, and the broker's word, in OpenSSH's own form, that who has it
//! may start this one command as this user. A machine believes that where `authorized_keys` says `cert-authority` of the
//! key that signs. What the command is, and who carries the pass where, is for the caller.

use std::fmt;
use std::time::{Duration, SystemTime};

use russh::keys::PrivateKey;
use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;

use super::key::ClientKey;

/// Before and after the moment it is made: what clocks of machines differ by, and a little time to log in.
const VALID: Duration = Duration::from_secs(5 * 60);

/// A key, and what it is good for.
pub struct Pass {
    /// The private half, as OpenSSH keeps it in a file. Worth nothing a few minutes later.
    pub private_openssh_pem: String,
    /// The certificate, as OpenSSH keeps it beside the key.
    pub certificate: String,
}

/// Why there is no pass.
#[derive(Debug, thiserror::Error)]
#[error("cannot certify a key: {0}")]
pub struct PassError(String);

impl Pass {
    /// A pass for this user and this command, wherever the signer's word counts. It allows no terminal and no forwarding.
    pub fn new(signer: &ClientKey, user: &str, command: &str) -> Result<Self, PassError> {
        let fail = |error: &dyn fmt::Display| PassError(error.to_string());
        let key = PrivateKey::from(Ed25519Keypair::random(&mut safe_rng()));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(|error| fail(&error))?;
        let (from, to) = (now.saturating_sub(VALID), now.saturating_add(VALID));
        let certified = || {
            let public = key.public_key().key_data().clone();
            let mut builder =
                Builder::new_with_random_nonce(&mut safe_rng(), public, from.as_secs(), to.as_secs())?;
            builder.cert_type(CertType::User)?;
            builder.key_id("nix-broker")?;
            builder.valid_principal(user)?;
            builder.critical_option("force-command", command)?;
            builder.sign(&**signer.private())?.to_openssh()
        };
        let certificate = certified().map_err(|error| fail(&error))?;
        let pem = key.to_openssh(LineEnding::LF).map_err(|error| fail(&error))?;
        Ok(Self { private_openssh_pem: pem.to_string(), certificate })
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass({})", self.certificate)
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::Certificate;

    use super::*;

    #[test]
    fn a_pass_is_for_one_user_one_command_and_some_minutes() {
        let signer = ClientKey::generate();
        let pass = Pass::new(&signer, "nix", "sh -c 'echo \"$1\"'").unwrap();
        let certificate = Certificate::from_openssh(&pass.certificate).unwrap();
        let key = PrivateKey::from_openssh(&pass.private_openssh_pem).unwrap();
        assert_eq!(certificate.public_key(), key.public_key().key_data());
        assert_ne!(pass.certificate, Pass::new(&signer, "nix", "sh -c 'echo \"$1\"'").unwrap().certificate);
        assert_eq!(certificate.valid_principals(), ["nix"]);
        assert_eq!(certificate.cert_type(), CertType::User);
        assert!(certificate.extensions().is_empty(), "no terminal, no forwarding");
        let options: Vec<_> = certificate.critical_options().iter().collect();
        assert_eq!(options, [(&"force-command".to_owned(), &"sh -c 'echo \"$1\"'".to_owned())]);
        let ours = signer.private().fingerprint(russh::keys::HashAlg::Sha256);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        certificate.validate_at(now, [&ours]).unwrap();
        certificate.validate_at(now + 2 * VALID.as_secs(), [&ours]).unwrap_err();
        let another = ClientKey::generate().private().fingerprint(russh::keys::HashAlg::Sha256);
        certificate.validate_at(now, [&another]).unwrap_err();
    }
}
