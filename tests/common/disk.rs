//! Disk images as small as they can be and still be taken for what a builder boots.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "helpers of tests; every test binary uses another part of it"
)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

pub(crate) const BLOCK: usize = 512 * 1024;
pub(crate) const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
pub(crate) const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";

/// A disk of this size with one partition of this kind in its GPT, and these bytes at these places.
pub(crate) fn write(path: &Path, size: u64, kind: [u8; 16], content: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in [
        (510, &[0x55, 0xaa][..]),
        (512, b"EFI PART"),
        (512 + 72, &[2]),
        (512 + 80, &[128]),
        (512 + 84, &[128]),
        (1024, &kind),
    ] {
        file.write_all_at(bytes, at).unwrap();
    }
    for (at, bytes) in content {
        file.write_all_at(bytes, *at).unwrap();
    }
}
