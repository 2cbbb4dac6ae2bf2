//! Deletes a machine's directory, whatever its builds have put there.
//!
//! A store is full of directories without write permission, and a build may leave a tree deeper than any path or any
//! stack of open directories. So no path below the top is ever resolved: every directory found is moved up to the top,
//! and emptied there. Symbolic links are deleted, never followed; other file systems are never entered.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fchmod, fstat, openat, renameat, unlinkat};
use rustix::io::Errno;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Deletes the directory and all in it; fine when there is none.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match openat(CWD, path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    make_writable(&top)?;
    let device = fstat(&top)?.st_dev;
    let mut moved = 0_u64;
    loop {
        // First everything of the top itself that is no directory, then what its directories contain, one level each
        // round, until a round finds no directory at all.
        let directories = empty(&top, top.as_fd(), &mut moved, false)?;
        if directories.is_empty() {
            break;
        }
        for name in directories {
            let directory = open_writable(&top, &name)?;
            if fstat(&directory)?.st_dev != device {
                return Err(io::Error::other(format!("`{}` holds another file system", path.display())));
            }
            empty(&directory, top.as_fd(), &mut moved, true)?;
            unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
    }
    unlinkat(CWD, path, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Deletes what is in `directory` but for directories; those are moved to `top` when `lift` says so, else returned.
fn empty(
    directory: &OwnedFd,
    top: impl AsFd,
    moved: &mut u64,
    lift: bool,
) -> io::Result<Vec<std::ffi::CString>> {
    let mut found = Vec::new();
    // Reading goes on while entries vanish: what was not seen in one pass is seen in the next.
    loop {
        let mut has_removed = false;
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if !is_directory(directory, name, entry.file_type())? {
                unlinkat(directory, name, AtFlags::empty())?;
                has_removed = true;
            } else if lift {
                // A directory can only be moved by who may write into it, since its `..` changes.
                drop(open_writable(directory, name)?);
                lift_up(directory, name, &top, moved)?;
                has_removed = true;
            } else if !found.iter().any(|seen: &std::ffi::CString| seen.as_c_str() == name) {
                found.push(name.to_owned());
            }
        }
        if !has_removed {
            return Ok(found);
        }
    }
}

/// Moves a directory up under a name that nothing has.
fn lift_up(directory: &OwnedFd, name: &CStr, top: impl AsFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        match renameat(directory, name, &top, format!(".removed-{moved}")) {
            // A build could have chosen such a name too.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            result => return Ok(result?),
        }
    }
}

fn is_directory(directory: &OwnedFd, name: &CStr, file_type: FileType) -> io::Result<bool> {
    if file_type != FileType::Unknown {
        return Ok(file_type == FileType::Directory);
    }
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Opens a directory after giving its owner every right.
fn open_writable(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let directory = match openat(parent, name, DIRECTORY, Mode::empty()) {
        // Not even readable. There is no chmod that does not follow links on older kernels, but this name is known to
        // be a directory, and every process that could exchange it is dead.
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            openat(parent, name, DIRECTORY, Mode::empty())?
        }
        opened => opened?,
    };
    make_writable(&directory)?;
    Ok(directory)
}

fn make_writable(directory: &OwnedFd) -> io::Result<()> {
    let stat = fstat(directory)?;
    if Mode::from_raw_mode(stat.st_mode).contains(Mode::RWXU) {
        return Ok(());
    }
    Ok(fchmod(directory, Mode::RWXU)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn read_only_and_closed_directories_links_and_odd_names_all_go_and_nothing_else_does() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().join("machine");
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        fs::create_dir_all(top.join(".removed-1/x")).unwrap();
        fs::write(top.join(".removed-2"), "").unwrap();
        fs::write(top.join("a/b/c/file"), "x").unwrap();
        symlink(outside.path(), top.join("a/b/link")).unwrap();
        symlink("nowhere", top.join("dangling")).unwrap();
        for (path, mode) in [("a/b/c", 0o555), ("a/b", 0o000), ("a", 0o444)] {
            fs::set_permissions(top.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.path().join("kept").exists());
        remove_tree(&top).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_any_path_goes_too() {
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().join("machine");
        fs::create_dir(&top).unwrap();
        let mut directory = openat(CWD, &top, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&directory, "deep", Mode::RWXU).unwrap();
            directory = openat(&directory, "deep", DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        let parent = tempfile::tempdir().unwrap();
        let link = parent.path().join("machine");
        symlink(outside.path(), &link).unwrap();
        assert!(remove_tree(&link).is_err());
        assert!(outside.path().join("kept").exists());
    }
}
