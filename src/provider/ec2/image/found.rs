//! The disk image that somebody means: a file, or what `nix build` made of one.
//!
//! Owns the reading of `nix-support/image-info.json`, which NixOS writes beside its images. What is in the image is for
//! `disk`.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{DiskError, ImageError};

/// More is no description of an image.
const MAX_INFO: u64 = 64 * 1024;
/// As which disk images are named.
const EXTENSIONS: [&str; 4] = ["img", "raw", "vhd", "qcow2"];

/// A disk image, and what is said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// The file itself.
    pub path: PathBuf,
    /// `x86_64-linux`
    pub system: Option<String>,
    /// `26.05.20261101.abcdef0`
    pub label: Option<String>,
}

#[derive(Default, Deserialize)]
struct Info {
    file: Option<PathBuf>,
    system: Option<String>,
    label: Option<String>,
}

impl ImageFile {
    /// The image at this path.
    pub fn find(path: &Path) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read { path: path.to_owned(), source };
        if !fs::metadata(path).map_err(read)?.is_dir() {
            // It may be one of several, so what is said beside it counts only when it is about this one.
            let info = path.parent().map(info).unwrap_or_default();
            let is_it = info.file.as_deref().and_then(Path::file_name) == path.file_name();
            let info = if is_it { info } else { Info::default() };
            return Ok(Self { path: path.to_owned(), system: info.system, label: info.label });
        }
        let info = info(path);
        // The path in there is that of the store, of which this may be a copy.
        let named = info.file.as_deref().and_then(Path::file_name).map(|name| path.join(name));
        let file = match named.filter(|file| file.is_file()) {
            Some(file) => file,
            None => only(path).map_err(read)?.map_err(|found| ImageError::Disk {
                path: path.to_owned(),
                problem: DiskError::Several(found),
            })?,
        };
        Ok(Self { path: file, system: info.system, label: info.label })
    }
}

/// What is said about the image in a directory, where anything is.
fn info(directory: &Path) -> Info {
    let mut text = Vec::new();
    let file = fs::File::open(directory.join("nix-support").join("image-info.json"));
    let read = file.and_then(|file| file.take(MAX_INFO).read_to_end(&mut text));
    read.ok().and_then(|_| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// The only disk image in a directory, or how many there are.
fn only(directory: &Path) -> io::Result<Result<PathBuf, usize>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) && path.is_file() {
            found.push(path);
        }
    }
    let count = found.len();
    Ok(found.pop().filter(|_| count == 1).ok_or(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    const INFO: &str = r#"{"label": "26.05.1", "boot_mode": "uefi", "system": "aarch64-linux", "logical_bytes": "1",
        "file": "/nix/store/abc-nixos/nixos.img", "disks": {"root": {"file": "/x"}}}"#;

    #[test]
    fn what_nix_built_says_what_it_is() {
        let directory =
            directory(&[("nixos.img", ""), ("other.img", ""), ("nix-support/image-info.json", INFO)]);
        let found = ImageFile::find(directory.path()).unwrap();
        assert_eq!(found.path, directory.path().join("nixos.img"));
        assert_eq!(
            (found.system.as_deref(), found.label.as_deref()),
            (Some("aarch64-linux"), Some("26.05.1"))
        );
        assert_eq!(ImageFile::find(&directory.path().join("nixos.img")).unwrap(), found);
        let other = ImageFile::find(&directory.path().join("other.img")).unwrap();
        assert_eq!((other.system, other.label), (None, None));
    }

    #[test]
    fn a_directory_is_good_when_it_has_one_image() {
        let one = directory(&[("a.raw", ""), ("notes", ""), ("nix-support/image-info.json", "{")]);
        assert_eq!(ImageFile::find(one.path()).unwrap().path, one.path().join("a.raw"));
        let several = directory(&[("a.raw", ""), ("b.img", "")]);
        let told = ImageFile::find(several.path()).unwrap_err().to_string();
        assert!(told.contains("has 2 disk images"), "{told}");
        assert!(
            ImageFile::find(directory(&[]).path()).unwrap_err().to_string().contains("has 0 disk images")
        );
        assert!(matches!(ImageFile::find(Path::new("/nonexistent")), Err(ImageError::Read { .. })));
    }
}
