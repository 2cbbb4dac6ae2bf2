//! Writes the file system tree at a path as a NAR.
//!
//! Owns reading the tree the way Nix would: names sorted by bytes, links not followed, the owner's executable bit, and
//! nothing but directories, files and links. A file that changes while it is read is an error, never a broken archive
//! that looks whole. Blocking: asynchronous callers put it on a thread of its own.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{Digester, NarDigest};
use crate::protocol::wire::padding_len;

/// How much of a file is read at once.
const CHUNK: usize = 128 << 10;
/// Words are collected up to this size before they are written.
const WORDS: usize = 32 << 10;
const OWNER_MAY_EXECUTE: u32 = 0o100;

/// Why a tree was not written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The tree cannot be read.
    #[error("read `{path}`", path = path.display())]
    Read {
        /// Which part of it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A socket, device or pipe.
    #[error("`{path}` is neither a file, a directory nor a symbolic link", path = path.display())]
    Unsupported {
        /// Which.
        path: PathBuf,
    },
    /// The file is not as long as it was when it was opened.
    #[error("`{path}` changed while it was read", path = path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// The archive cannot be written.
    #[error("write the archive")]
    Write(#[source] io::Error),
}

/// Writes the tree at `path` and says what the archive is.
pub fn write_tree(path: &Path, sink: &mut impl Write) -> Result<NarDigest, TreeError> {
    let mut writer = TreeWriter {
        sink,
        digester: Digester::default(),
        words: Vec::with_capacity(WORDS),
        chunk: Vec::new(),
    };
    writer.word(b"nix-archive-1")?;
    writer.tree(path)?;
    writer.flush()?;
    Ok(writer.digester.finish())
}

struct TreeWriter<'a, W> {
    sink: &'a mut W,
    digester: Digester,
    words: Vec<u8>,
    chunk: Vec<u8>,
}

/// A directory whose entries are being written.
struct OpenDirectory {
    path: PathBuf,
    /// Sorted backwards, so that the next one is the last.
    names: Vec<OsString>,
}

impl<W: Write> TreeWriter<'_, W> {
    /// One tree with a stack of its own: the depth of a directory must not become the depth of ours.
    fn tree(&mut self, root: &Path) -> Result<(), TreeError> {
        let mut open = Vec::new();
        open.extend(self.node(root)?);
        while let Some(directory) = open.last_mut() {
            let Some(name) = directory.names.pop() else {
                open.pop();
                self.word(b")")?;
                if !open.is_empty() {
                    self.word(b")")?;
                }
                continue;
            };
            let path = directory.path.join(&name);
            self.word_list(&[b"entry", b"(", b"name", name.as_bytes(), b"node"])?;
            match self.node(&path)? {
                Some(directory) => open.push(directory),
                None => self.word(b")")?,
            }
        }
        Ok(())
    }

    /// One node; of a directory only the beginning.
    fn node(&mut self, path: &Path) -> Result<Option<OpenDirectory>, TreeError> {
        let metadata = fs::symlink_metadata(path).map_err(|source| read_error(path, source))?;
        let kind = metadata.file_type();
        self.word_list(&[b"(", b"type"])?;
        if kind.is_dir() {
            self.word(b"directory")?;
            return Ok(Some(OpenDirectory { path: path.to_owned(), names: names_backwards(path)? }));
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|source| read_error(path, source))?;
            self.word_list(&[b"symlink", b"target", &target.into_os_string().into_vec()])?;
        } else if kind.is_file() {
            self.file(path)?;
        } else {
            return Err(TreeError::Unsupported { path: path.to_owned() });
        }
        self.word(b")")?;
        Ok(None)
    }

    fn file(&mut self, path: &Path) -> Result<(), TreeError> {
        let (mut file, metadata) = open_file(path)?;
        self.word(b"regular")?;
        if metadata.permissions().mode() & OWNER_MAY_EXECUTE != 0 {
            self.word_list(&[b"executable", b""])?;
        }
        self.word(b"contents")?;
        let size = metadata.len();
        self.put(&size.to_le_bytes())?;
        let mut left = size;
        self.chunk.resize(CHUNK, 0);
        loop {
            let got = match file.read(&mut self.chunk) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(read_error(path, source)),
            };
            // The read that finds the end is also the one that would find a file that grew.
            if got as u64 > left || (got == 0 && left > 0) {
                return Err(TreeError::Changed { path: path.to_owned() });
            }
            if got == 0 {
                break;
            }
            left -= got as u64;
            self.flush_words()?;
            let bytes = &self.chunk[..got];
            self.digester.update(bytes);
            self.sink.write_all(bytes).map_err(TreeError::Write)?;
        }
        self.put(&[0; 8][..padding_len(size)])
    }

    fn word_list(&mut self, words: &[&[u8]]) -> Result<(), TreeError> {
        words.iter().try_for_each(|word| self.word(word))
    }

    fn word(&mut self, word: &[u8]) -> Result<(), TreeError> {
        let len = word.len() as u64;
        self.put(&len.to_le_bytes())?;
        self.put(word)?;
        self.put(&[0; 8][..padding_len(len)])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        if self.words.len() + bytes.len() > WORDS {
            self.flush_words()?;
        }
        self.words.extend_from_slice(bytes);
        Ok(())
    }

    fn flush_words(&mut self) -> Result<(), TreeError> {
        self.digester.update(&self.words);
        self.sink.write_all(&self.words).map_err(TreeError::Write)?;
        self.words.clear();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TreeError> {
        self.flush_words()?;
        self.sink.flush().map_err(TreeError::Write)
    }
}

/// Opens a regular file. What was one a moment ago may be a link or a pipe by now: neither is followed or waited for.
fn open_file(path: &Path) -> Result<(File, Metadata), TreeError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(|source| read_error(path, source))?;
    let metadata = file.metadata().map_err(|source| read_error(path, source))?;
    if !metadata.is_file() {
        return Err(TreeError::Changed { path: path.to_owned() });
    }
    Ok((file, metadata))
}

fn names_backwards(path: &Path) -> Result<Vec<OsString>, TreeError> {
    let read = |source| read_error(path, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        names.push(entry.map_err(read)?.file_name());
    }
    names.sort_unstable_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
    Ok(names)
}

fn read_error(path: &Path, source: io::Error) -> TreeError {
    TreeError::Read { path: path.to_owned(), source }
}
