//! What is in a file: a disk that can be uploaded as it is, or something else, and what to do about that.
//!
//! Owns the formats and the partition table, as far as an image depends on them. [`recognise`] is pure; what the disk's
//! blocks are is in [`super::blocks`].

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{BlockPlan, ImageError};
use crate::provider::ec2::api::BootMode;

/// No builder's image is larger, and a mistake of this size would cost.
pub const LARGEST: u64 = 1024 * 1024 * 1024 * 1024;
const SECTOR: u64 = 512;
/// The boot sector, the header of the partition table, and its 128 entries.
const HEAD: usize = 34 * 512;

/// The partition that firmware starts from, as a GPT has its type.
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
/// Where the boot loader of a BIOS is.
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";

/// A disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its bytes, from the start of the file on. A file may hold more after them.
    pub size: u64,
    /// How it is started, where its partitions show it.
    pub boot_mode: Option<BootMode>,
}

/// Why a file is no disk that can be uploaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Nothing.
    #[error("is empty: see whether the build that makes it has succeeded")]
    Empty,
    /// Neither a file nor a directory with an image.
    #[error("is no file: give a raw disk image, or the directory that `nix build` made of one")]
    NoFile,
    /// A directory without an image, or with several.
    #[error("has {0} disk images in it, not one: give the file itself")]
    Several(usize),
    /// A disk in another form.
    #[error("is a {format}, and what is uploaded is raw: `qemu-img convert -O raw IN OUT` makes it so")]
    Form {
        /// In which.
        format: &'static str,
    },
    /// A disk that was made smaller.
    #[error("is compressed: `{0} IN` unpacks it")]
    Compressed(&'static str),
    /// More than we take.
    #[error("has {} GiB, and no more than {} GiB are uploaded: is it the right file?", .0 >> 30, LARGEST >> 30)]
    TooLarge(u64),
    /// Disks have sectors.
    #[error(
        "has {0} bytes, no multiple of 512, hence is no disk or only a part of one: copy or build it again"
    )]
    NotWhole(u64),
    /// Nothing that could be started.
    #[error("has no partition table: it is no disk that an instance could boot")]
    NoTable,
    /// A VHD whose parts contradict each other.
    #[error("is a VHD whose footer does not fit its length: copy or build it again")]
    Torn,
}

/// What a file of this length is, by its beginning and its last 512 bytes.
pub fn recognise(head: &[u8], tail: &[u8], length: u64) -> Result<Disk, DiskError> {
    if length == 0 {
        return Err(DiskError::Empty);
    }
    let forms: [(&[u8], &str); 5] = [
        (b"QFI\xfb", "qcow2 image"),
        (b"KDMV", "VMDK image"),
        (b"vhdxfile", "VHDX image"),
        (b"conectix", "dynamic VHD image"),
        (b"<<< ", "VDI image"),
    ];
    for (magic, format) in forms {
        if head.starts_with(magic) {
            return Err(DiskError::Form { format });
        }
    }
    let packed: [(&[u8], &str); 4] = [
        (b"\x1f\x8b", "gunzip"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"\xfd7zXZ\0", "unxz"),
        (b"BZh", "bunzip2"),
    ];
    for (magic, tool) in packed {
        if head.starts_with(magic) {
            return Err(DiskError::Compressed(tool));
        }
    }
    if length > LARGEST {
        return Err(DiskError::TooLarge(length));
    }
    if !length.is_multiple_of(SECTOR) {
        return Err(DiskError::NotWhole(length));
    }
    let size = if tail.starts_with(b"conectix") { vhd_size(tail, length)? } else { length };
    if head.get(510..512) != Some(&[0x55, 0xaa]) {
        return Err(DiskError::NoTable);
    }
    Ok(Disk { size, boot_mode: boot_mode(head) })
}

/// A VHD of fixed size is a raw disk with a footer.
fn vhd_size(footer: &[u8], length: u64) -> Result<u64, DiskError> {
    const FIXED: u64 = 2;
    let disk = length - SECTOR;
    let number = |at: std::ops::Range<usize>| {
        let bytes = footer.get(at).ok_or(DiskError::Torn)?;
        Ok(bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    match (number(60..64)?, number(48..56)?) {
        (FIXED, size) if size > 0 && size <= disk && size.is_multiple_of(SECTOR) => Ok(size),
        (FIXED, _) => Err(DiskError::Torn),
        (_, _) => Err(DiskError::Form { format: "dynamic VHD image" }),
    }
}

/// What the partitions show.
fn boot_mode(head: &[u8]) -> Option<BootMode> {
    let header = head.get(512..1024)?;
    if !header.starts_with(b"EFI PART") {
        // Four entries with their kind in the fifth byte; one of them is the EFI system partition where there is one.
        let mut kinds = (0..4).filter_map(|entry| head.get(446 + 16 * entry + 4)).filter(|kind| **kind != 0);
        let mode = |has_efi: bool| if has_efi { BootMode::Uefi } else { BootMode::LegacyBios };
        return kinds.clone().next().map(|_| mode(kinds.any(|kind| *kind == 0xef)));
    }
    let number = |at: std::ops::Range<usize>| -> Option<usize> {
        let bytes = header.get(at)?;
        let number = bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        usize::try_from(number).ok()
    };
    let (first, count, size) = (number(72..80)?, number(80..84)?, number(84..88)?);
    let start = first.checked_mul(512)?;
    if size < 128 {
        return None;
    }
    let kind = |entry: usize| {
        let at = start.checked_add(entry.checked_mul(size)?)?;
        head.get(at..at.checked_add(16)?)
    };
    let kinds = || (0..count.min(128)).map_while(kind);
    match (kinds().any(|kind| kind == EFI_SYSTEM), kinds().any(|kind| kind == BIOS_BOOT)) {
        (true, true) => Some(BootMode::UefiPreferred),
        (true, false) => Some(BootMode::Uefi),
        (false, true) => Some(BootMode::LegacyBios),
        (false, false) => None,
    }
}

/// An open file with a disk in it.
pub struct DiskFile {
    path: PathBuf,
    file: File,
    disk: Disk,
}

impl fmt::Debug for DiskFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskFile").field("path", &self.path).field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl DiskFile {
    /// Opens a file, and sees that it can be uploaded.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read { path: path.to_owned(), source };
        let wrong = |problem| ImageError::Disk { path: path.to_owned(), problem };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(wrong(DiskError::NoFile));
        }
        let length = metadata.len();
        let mut head = vec![0; usize::try_from(length).unwrap_or(HEAD).min(HEAD)];
        file.read_exact_at(&mut head, 0).map_err(read)?;
        let mut tail = vec![0; head.len().min(512)];
        let end = length - tail.len() as u64;
        file.read_exact_at(&mut tail, end).map_err(read)?;
        let disk = recognise(&head, &tail, length).map_err(wrong)?;
        Ok(Self { path: path.to_owned(), file, disk })
    }

    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it.
    pub fn disk(&self) -> Disk {
        self.disk
    }

    /// What is to be written of it. Reads all of it.
    pub fn plan(&self) -> Result<BlockPlan, ImageError> {
        let plan = BlockPlan::of(self.disk.size, |at, bytes| self.read(at, bytes));
        plan.map_err(|source| ImageError::Read { path: self.path.clone(), source })
    }

    /// These bytes of the disk.
    pub(super) fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A disk with these partitions in its GPT.
    fn gpt(kinds: &[[u8; 16]]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        head[512..520].copy_from_slice(b"EFI PART");
        head[512 + 72] = 2;
        head[512 + 80] = 128;
        head[512 + 84] = 128;
        for (entry, kind) in kinds.iter().enumerate() {
            head[1024 + 128 * entry..][..16].copy_from_slice(kind);
        }
        head
    }

    fn mode(head: &[u8]) -> Option<BootMode> {
        recognise(head, &[0; 512], GIB).unwrap().boot_mode
    }

    #[test]
    fn partitions_show_how_a_disk_is_started() {
        let linux = [7; 16];
        assert_eq!(mode(&gpt(&[EFI_SYSTEM, linux])), Some(BootMode::Uefi));
        assert_eq!(mode(&gpt(&[BIOS_BOOT, linux])), Some(BootMode::LegacyBios));
        assert_eq!(mode(&gpt(&[linux, BIOS_BOOT, EFI_SYSTEM])), Some(BootMode::UefiPreferred));
        assert_eq!(mode(&gpt(&[linux])), None);
        let mut mbr = vec![0; HEAD];
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(mode(&mbr), None);
        mbr[450] = 0x83;
        assert_eq!(mode(&mbr), Some(BootMode::LegacyBios));
        mbr[466] = 0xef;
        assert_eq!(mode(&mbr), Some(BootMode::Uefi));
    }

    #[test]
    fn a_partition_table_that_lies_about_itself_shows_nothing() {
        for (at, bytes) in [(72, [0xff; 8]), (80, [0xff; 8]), (84, [0; 8])] {
            let mut head = gpt(&[[7; 16]]);
            head[512 + at..512 + at + 8].copy_from_slice(&bytes);
            assert_eq!(mode(&head), None, "{at}");
        }
    }

    #[test]
    fn what_is_no_raw_disk_is_named_with_what_to_do() {
        let disk = gpt(&[EFI_SYSTEM]);
        let told = |head: &[u8], length: u64| recognise(head, &[0; 512], length).unwrap_err().to_string();
        assert!(told(&[], 0).contains("is empty"));
        assert!(told(b"QFI\xfb\0\0\0\x03", GIB).contains("qcow2"));
        assert!(told(b"QFI\xfb\0\0\0\x03", GIB).contains("qemu-img convert -O raw"));
        assert!(told(b"conectix", GIB).contains("dynamic VHD"));
        assert!(told(b"\x28\xb5\x2f\xfd", 77).contains("unzstd"));
        assert!(told(&disk, GIB + 1).contains("1073741825 bytes"));
        assert!(told(&disk, LARGEST + 512).contains("1024 GiB"));
        assert!(told(&[0; HEAD], GIB).contains("no partition table"));
        assert_eq!(recognise(&disk, &[0; 512], LARGEST).unwrap().size, LARGEST);
    }

    #[test]
    fn a_fixed_vhd_is_a_raw_disk_with_a_footer() {
        let disk = gpt(&[EFI_SYSTEM]);
        let footer = |kind: u8, size: u64| {
            let mut footer = vec![0; 512];
            footer[..8].copy_from_slice(b"conectix");
            footer[48..56].copy_from_slice(&size.to_be_bytes());
            footer[63] = kind;
            footer
        };
        let seen = |kind, size| recognise(&disk, &footer(kind, size), GIB + 512);
        assert_eq!(seen(2, GIB).unwrap().size, GIB);
        assert_eq!(seen(2, GIB + 512), Err(DiskError::Torn));
        assert_eq!(seen(2, 0), Err(DiskError::Torn));
        assert_eq!(seen(3, GIB), Err(DiskError::Form { format: "dynamic VHD image" }));
    }
}
