//! The SHA-256 values Nix writes about, in its two spellings: base16 and nix32.
//!
//! Owns the text forms only; what is hashed, and when, belongs to whoever moves the bytes (`nar`).

use std::fmt;

use sha2::{Digest, Sha256};

/// nix32's digits, least significant value first.
const NIX32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
const NIX32_LEN: usize = 52;
const BASE16_LEN: usize = 64;

/// A text that is no SHA-256 value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 value in base16 or nix32")]
pub struct HashError;

/// A SHA-256 value; prints as Nix does: `sha256:<nix32>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Hash([u8; 32]);

impl Sha256Hash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The value itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads base16 or nix32, with or without the prefix `sha256:`.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        match digits.len() {
            BASE16_LEN => from_base16(digits),
            NIX32_LEN => from_nix32(digits),
            _ => Err(HashError),
        }
    }

    /// 64 lower-case digits: how the worker protocol spells it.
    pub fn to_base16(self) -> String {
        let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value & 15)]);
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
    }

    /// 52 digits: how people and `.narinfo` files spell it.
    pub fn to_nix32(self) -> String {
        (0..NIX32_LEN)
            .rev()
            .map(|place| {
                let (byte, shift) = (place * 5 / 8, place * 5 % 8);
                let high = self.0.get(byte + 1).copied().map_or(0, u16::from) << 8;
                let value = (high | u16::from(self.0[byte])) >> shift;
                char::from(NIX32[usize::from(value & 31)])
            })
            .collect()
    }
}

impl From<[u8; 32]> for Sha256Hash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_nix32())
    }
}

impl fmt::Debug for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn from_base16(digits: &[u8]) -> Result<Sha256Hash, HashError> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(HashError),
    };
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Ok(Sha256Hash(hash))
}

fn from_nix32(digits: &[u8]) -> Result<Sha256Hash, HashError> {
    let mut hash = [0_u8; 32];
    for (place, digit) in digits.iter().rev().enumerate() {
        let value = NIX32.iter().position(|known| known == digit).ok_or(HashError)? as u16;
        let (byte, shift) = (place * 5 / 8, place * 5 % 8);
        let [low, high] = (value << shift).to_le_bytes();
        hash[byte] |= low;
        match hash.get_mut(byte + 1) {
            Some(next) => *next |= high,
            // 52 digits hold 260 bits: the four too many must be zero.
            None if high != 0 => return Err(HashError),
            None => {}
        }
    }
    Ok(Sha256Hash(hash))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values_are_spelled_as_nix_does() {
        // `nix hash to-base32 --type sha256` of the empty input's hash.
        let empty = Sha256Hash::of(b"");
        assert_eq!(empty.to_base16(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(empty.to_string(), "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        let base16 = Sha256Hash::of(b"").to_base16();
        for bad in [
            "",
            "sha256:",
            &base16[1..],
            &base16.to_uppercase(),
            &format!("sha512:{base16}"),
            &"e".repeat(52),
            // The first digit holds the four bits too many.
            &"z".repeat(52),
            &"é".repeat(32),
        ] {
            assert_eq!(Sha256Hash::parse(bad), Err(HashError), "{bad} was taken");
        }
    }

    proptest! {
        #[test]
        fn every_value_survives_both_spellings(bytes in any::<[u8; 32]>()) {
            let hash = Sha256Hash::from(bytes);
            prop_assert_eq!(Sha256Hash::parse(&hash.to_base16()), Ok(hash));
            prop_assert_eq!(Sha256Hash::parse(&hash.to_nix32()), Ok(hash));
            prop_assert_eq!(Sha256Hash::parse(&hash.to_string()), Ok(hash));
        }
    }
}
