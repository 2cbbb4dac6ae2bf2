//! An incremental NAR parser: bytes are pushed in, events come out.
//!
//! Owns the grammar and every rule of it: what Nix itself would refuse is refused, and so is what Nix would read but
//! never write. It does no I/O, works linearly, and keeps the names of the directories it is inside of, nothing else.
//!
//! ```text
//! nar   = "nix-archive-1" node
//! node  = "(" "type" ( "regular" [ "executable" "" ] "contents" BYTES
//!                    | "symlink" "target" TEXT
//!                    | "directory" { "entry" "(" "name" NAME "node" node ")" } ) ")"
//! ```

use crate::protocol::wire::padding_len;

/// Directories inside each other; a path of Linux cannot be deeper.
const MAX_DEPTH: usize = 2048;
/// A file name; file systems stop at 255 or, some, at 1023.
const MAX_NAME: u64 = 1023;
/// The target of a symbolic link; Linux stops at 4095.
const MAX_TARGET: u64 = 4096;
/// No word of the grammar is longer.
const MAX_KEYWORD: u64 = 16;

/// Why bytes are no NAR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarError {
    /// Another word stands where the grammar wants this one.
    #[error("at byte {offset}: expected {expected}, found `{found}`")]
    Unexpected {
        /// Where the word ends.
        offset: u64,
        /// What the grammar wants.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A word, name or target is longer than any can be.
    #[error("at byte {offset}: a {what} has length {len}, more than {max}")]
    TooLong {
        /// Where its length ends.
        offset: u64,
        /// What it is.
        what: &'static str,
        /// The length that is announced.
        len: u64,
        /// The longest there can be.
        max: u64,
    },
    /// The bytes that fill up to a multiple of eight are not zero.
    #[error("at byte {offset}: padding is not zero")]
    BadPadding {
        /// Where it is.
        offset: u64,
    },
    /// A file name that no directory can have, or that leads elsewhere.
    #[error("at byte {offset}: `{name}` cannot be the name of a file")]
    BadName {
        /// Where it ends.
        offset: u64,
        /// The name.
        name: String,
    },
    /// The names in a directory do not ascend.
    #[error("at byte {offset}: `{name}` is out of order or there twice")]
    Unsorted {
        /// Where it ends.
        offset: u64,
        /// The second of the two names.
        name: String,
    },
    /// Too many directories inside each other.
    #[error("at byte {offset}: directories are nested deeper than {MAX_DEPTH}")]
    TooDeep {
        /// Where.
        offset: u64,
    },
    /// The archive ends early.
    #[error("the archive ends after {offset} bytes, before its end")]
    Truncated {
        /// How much there was.
        offset: u64,
    },
}

/// What the parser saw. A node follows the [`Entry`](Self::Entry) that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NarEvent<'a> {
    /// A directory begins.
    Directory,
    /// The next entry of the innermost directory.
    Entry {
        /// Its name: not empty, no `.`, no `..`, no slash, no NUL.
        name: &'a [u8],
    },
    /// The innermost directory ends.
    EndDirectory,
    /// A regular file begins.
    File {
        /// Whether it may be executed.
        executable: bool,
        /// The length of its contents.
        size: u64,
    },
    /// A piece of the file's contents; never empty.
    Contents(&'a [u8]),
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: &'a [u8],
    },
}

/// What the grammar wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Magic,
    OpenNode,
    TypeTag,
    Kind,
    ExecutableOrContents,
    ExecutableValue,
    ContentsTag,
    Contents,
    TargetTag,
    Target,
    CloseNode,
    EntryOrClose,
    OpenEntry,
    NameTag,
    Name,
    NodeTag,
    CloseEntry,
    Nothing,
}

/// Where in a string the parser is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Length { bytes: [u8; 8], got: usize },
    Body { left: u64, padding: usize },
    Padding { left: usize },
}

const START_OF_STRING: Place = Place::Length { bytes: [0; 8], got: 0 };

/// The parser; see the module.
#[derive(Debug)]
pub struct NarParser {
    want: Want,
    place: Place,
    /// The word, name or target that is being read; never file contents.
    word: Vec<u8>,
    /// The name last seen in each directory that is open.
    directories: Vec<Vec<u8>>,
    executable: bool,
    offset: u64,
    failed: Option<NarError>,
}

impl Default for NarParser {
    fn default() -> Self {
        Self::new()
    }
}

impl NarParser {
    /// A parser at the start of an archive.
    pub fn new() -> Self {
        Self {
            want: Want::Magic,
            place: START_OF_STRING,
            word: Vec::new(),
            directories: Vec::new(),
            executable: false,
            offset: 0,
            failed: None,
        }
    }

    /// Takes bytes up to the end of the archive and says how many those were: all of them, or fewer when the archive
    /// ends inside `bytes`. After an error, every call repeats it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, NarError> {
        self.feed_with(bytes, |_| {})
    }

    /// As [`feed`](Self::feed), and tells what it sees.
    pub fn feed_with(
        &mut self,
        bytes: &[u8],
        mut on_event: impl FnMut(NarEvent<'_>),
    ) -> Result<usize, NarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance(bytes, &mut on_event);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// How many bytes were understood.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the archive is complete.
    pub fn is_done(&self) -> bool {
        self.want == Want::Nothing
    }

    /// An error unless the archive is complete.
    pub fn finish(&self) -> Result<(), NarError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.is_done() => Ok(()),
            None => Err(NarError::Truncated { offset: self.offset }),
        }
    }

    fn advance(&mut self, bytes: &[u8], on_event: &mut impl FnMut(NarEvent<'_>)) -> Result<usize, NarError> {
        let mut rest = bytes;
        while !rest.is_empty() && self.want != Want::Nothing {
            let taken = match self.place {
                Place::Length { bytes: mut length, got } => {
                    let taken = rest.len().min(8 - got);
                    length[got..got + taken].copy_from_slice(&rest[..taken]);
                    self.offset += taken as u64;
                    if got + taken < 8 {
                        self.place = Place::Length { bytes: length, got: got + taken };
                    } else {
                        self.begin_body(u64::from_le_bytes(length), on_event)?;
                    }
                    taken
                }
                Place::Body { left, padding } => {
                    let taken = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    if self.want == Want::Contents {
                        on_event(NarEvent::Contents(&rest[..taken]));
                    } else {
                        self.word.extend_from_slice(&rest[..taken]);
                    }
                    self.offset += taken as u64;
                    let left = left - taken as u64;
                    if left > 0 {
                        self.place = Place::Body { left, padding };
                    } else {
                        self.end_body(padding, on_event)?;
                    }
                    taken
                }
                Place::Padding { left } => {
                    let taken = rest.len().min(left);
                    if rest[..taken].iter().any(|byte| *byte != 0) {
                        return Err(NarError::BadPadding { offset: self.offset });
                    }
                    self.offset += taken as u64;
                    if taken < left {
                        self.place = Place::Padding { left: left - taken };
                    } else {
                        self.end_string(on_event)?;
                    }
                    taken
                }
            };
            rest = &rest[taken..];
        }
        Ok(bytes.len() - rest.len())
    }

    fn begin_body(&mut self, len: u64, on_event: &mut impl FnMut(NarEvent<'_>)) -> Result<(), NarError> {
        let (what, max) = match self.want {
            // The bytes, the padding and the rest of the archive must still fit a 64-bit offset.
            Want::Contents => ("file", u64::MAX / 4),
            Want::Name => ("name", MAX_NAME),
            Want::Target => ("symbolic link", MAX_TARGET),
            Want::Magic
            | Want::OpenNode
            | Want::TypeTag
            | Want::Kind
            | Want::ExecutableOrContents
            | Want::ExecutableValue
            | Want::ContentsTag
            | Want::TargetTag
            | Want::CloseNode
            | Want::EntryOrClose
            | Want::OpenEntry
            | Want::NameTag
            | Want::NodeTag
            | Want::CloseEntry
            | Want::Nothing => ("word", MAX_KEYWORD),
        };
        if len > max {
            return Err(NarError::TooLong { offset: self.offset, what, len, max });
        }
        self.word.clear();
        if self.want == Want::Contents {
            on_event(NarEvent::File { executable: self.executable, size: len });
        }
        if len > 0 {
            self.place = Place::Body { left: len, padding: padding_len(len) };
            return Ok(());
        }
        self.end_body(0, on_event)
    }

    fn end_body(&mut self, padding: usize, on_event: &mut impl FnMut(NarEvent<'_>)) -> Result<(), NarError> {
        if padding > 0 {
            self.place = Place::Padding { left: padding };
            return Ok(());
        }
        self.end_string(on_event)
    }

    /// A string is complete: what does the grammar make of it?
    fn end_string(&mut self, on_event: &mut impl FnMut(NarEvent<'_>)) -> Result<(), NarError> {
        self.place = START_OF_STRING;
        let word = self.word.as_slice();
        self.want = match (self.want, word) {
            (Want::Magic, b"nix-archive-1") => Want::OpenNode,
            (Want::OpenNode, b"(") => Want::TypeTag,
            (Want::TypeTag, b"type") => Want::Kind,
            (Want::Kind, b"regular") => {
                self.executable = false;
                Want::ExecutableOrContents
            }
            (Want::Kind, b"symlink") => Want::TargetTag,
            (Want::Kind, b"directory") => {
                if self.directories.len() >= MAX_DEPTH {
                    return Err(NarError::TooDeep { offset: self.offset });
                }
                self.directories.push(Vec::new());
                on_event(NarEvent::Directory);
                Want::EntryOrClose
            }
            (Want::ExecutableOrContents, b"executable") => Want::ExecutableValue,
            (Want::ExecutableValue, b"") => {
                self.executable = true;
                Want::ContentsTag
            }
            (Want::ExecutableOrContents | Want::ContentsTag, b"contents") => Want::Contents,
            (Want::Contents, _) => Want::CloseNode,
            (Want::TargetTag, b"target") => Want::Target,
            (Want::Target, target) => {
                if target.is_empty() || target.contains(&0) {
                    return Err(self.unexpected("the target of a symbolic link"));
                }
                on_event(NarEvent::Symlink { target });
                Want::CloseNode
            }
            (Want::CloseNode, b")") => self.after_node(),
            (Want::EntryOrClose, b"entry") => Want::OpenEntry,
            (Want::EntryOrClose, b")") => {
                self.directories.pop();
                on_event(NarEvent::EndDirectory);
                self.after_node()
            }
            (Want::OpenEntry, b"(") => Want::NameTag,
            (Want::NameTag, b"name") => Want::Name,
            (Want::Name, _) => {
                self.take_name()?;
                on_event(NarEvent::Entry { name: &self.word });
                Want::NodeTag
            }
            (Want::NodeTag, b"node") => Want::OpenNode,
            (Want::CloseEntry, b")") => Want::EntryOrClose,
            (want, _) => return Err(self.unexpected(want.describe())),
        };
        Ok(())
    }

    fn after_node(&self) -> Want {
        if self.directories.is_empty() { Want::Nothing } else { Want::CloseEntry }
    }

    fn take_name(&mut self) -> Result<(), NarError> {
        let name = self.word.as_slice();
        let shown = || String::from_utf8_lossy(name).into_owned();
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return Err(NarError::BadName { offset: self.offset, name: shown() });
        }
        if let Some(previous) = self.directories.last_mut() {
            // No name is empty, so the first one comes after the empty name the directory began with.
            if name <= previous.as_slice() {
                return Err(NarError::Unsorted { offset: self.offset, name: shown() });
            }
            previous.clear();
            previous.extend_from_slice(name);
        }
        Ok(())
    }

    fn unexpected(&self, expected: &'static str) -> NarError {
        let found = String::from_utf8_lossy(&self.word[..self.word.len().min(64)]).into_owned();
        NarError::Unexpected { offset: self.offset, expected, found }
    }
}

impl Want {
    fn describe(self) -> &'static str {
        match self {
            Self::Magic => "`nix-archive-1`",
            Self::OpenNode | Self::OpenEntry => "`(`",
            Self::TypeTag => "`type`",
            Self::Kind => "`regular`, `symlink` or `directory`",
            Self::ExecutableOrContents => "`executable` or `contents`",
            Self::ExecutableValue => "an empty string",
            Self::ContentsTag => "`contents`",
            Self::Contents => "the contents of a file",
            Self::TargetTag => "`target`",
            Self::Target => "the target of a symbolic link",
            Self::CloseNode | Self::CloseEntry => "`)`",
            Self::EntryOrClose => "`entry` or `)`",
            Self::NameTag => "`name`",
            Self::Name => "the name of a file",
            Self::NodeTag => "`node`",
            Self::Nothing => "nothing",
        }
    }
}
