//! Numbers that nobody guesses, from the kernel: for names, tokens and addresses.

use std::fs::File;
use std::io::{self, Read as _};

/// So many random bytes.
pub(super) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A token that nobody else has: 128 bits, as 32 hexadecimal digits.
pub fn token() -> io::Result<String> {
    Ok(bytes::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}
