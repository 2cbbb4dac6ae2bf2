//! Reads `.drv` files: the text form (ATerm) Nix stores derivations in.
//!
//! Owns the grammar, strictly: no byte may be missing, different or left over. The file comes from our own store, but
//! the store holds what anybody's build put there, so depth and sizes are bounded like a peer's.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::{Ancestry, Derivation, InputDrv, Output, prefers_local, required_features, tells_needs};
use crate::model::{DrvPath, OutputName, StorePath, StorePathError};
use crate::protocol::wire::WireError;

/// The longest file that is read; the largest ones known have a few megabytes.
pub const MAX_FILE: usize = 256 << 20;
/// Derivations that are outputs of derivations that are outputs ...
const MAX_DYNAMIC_DEPTH: usize = 64;

/// What the "program" of a derivation begins with that Nix itself builds.
const BUILTIN_PREFIX: &[u8] = b"builtin:";

/// Why bytes are no `.drv` file.
#[derive(Debug, thiserror::Error)]
pub enum AtermError {
    /// The file is longer than any derivation.
    #[error("the derivation has {0} bytes, more than {MAX_FILE}")]
    TooLong(usize),
    /// The grammar wants something else here.
    #[error("at byte {offset} of the derivation: expected {expected}")]
    Expected {
        /// Where.
        offset: usize,
        /// What.
        expected: &'static str,
    },
    /// A format newer than this reader.
    #[error("the derivation has the unknown format `{0}`")]
    UnknownFormat(String),
    /// A path or an output name in it is none.
    #[error("before byte {offset} of the derivation")]
    BadPath {
        /// Where it ends.
        offset: usize,
        /// Which rule it breaks.
        #[source]
        source: StorePathError,
    },
    /// An output is of no known kind.
    #[error("before byte {offset} of the derivation")]
    BadOutput {
        /// Where it ends.
        offset: usize,
        /// Which rule it breaks.
        #[source]
        source: WireError,
    },
    /// A text that people read is not UTF-8.
    #[error("before byte {offset} of the derivation: {what} is not UTF-8")]
    NotUtf8 {
        /// Where it ends.
        offset: usize,
        /// Which.
        what: &'static str,
    },
    /// Dynamic derivations are nested without end.
    #[error("at byte {offset} of the derivation: input derivations are nested too deeply")]
    TooDeep {
        /// Where.
        offset: usize,
    },
}

/// Reads a whole file.
pub(crate) fn parse(file: &[u8]) -> Result<Derivation, AtermError> {
    let mut parser = Parser::new(file)?;
    let inputs_may_be_dynamic = parser.header()?;
    let outputs = parser.outputs()?;
    parser.expect(b',', "`,`")?;
    let input_drvs = parser.input_drvs(inputs_may_be_dynamic)?;
    parser.expect(b',', "`,`")?;
    let input_srcs = parser.list(Parser::path)?.into_iter().collect();
    parser.expect(b',', "`,`")?;
    let system = parser.text("the system")?.into_owned();
    parser.expect(b',', "`,`")?;
    let builder = parser.string()?.into_owned();
    parser.expect(b',', "`,`")?;
    let args = parser.list(|parser| Ok(parser.string()?.into_owned()))?;
    parser.expect(b',', "`,`")?;
    let env = parser.list(Parser::variable)?.into_iter().collect();
    parser.end()?;
    Ok(Derivation { outputs, input_drvs, input_srcs, system, builder, args, env })
}

/// Reads a whole file, and keeps what [`Ancestry`] is about: a third of the time of [`parse`], because the environment,
/// which is most of a file, is only passed over.
pub(super) fn parse_ancestry(file: &[u8]) -> Result<Ancestry, AtermError> {
    let mut parser = Parser::new(file)?;
    let inputs_may_be_dynamic = parser.header()?;
    let outputs = parser.outputs()?;
    parser.expect(b',', "`,`")?;
    let inputs = parser.input_drvs(inputs_may_be_dynamic)?.into_keys().collect();
    parser.expect(b',', "`,`")?;
    parser.list(Parser::pass_string)?;
    parser.expect(b',', "`,`")?;
    let system = parser.text("the system")?.into_owned();
    parser.expect(b',', "`,`")?;
    let is_builtin = parser.string()?.starts_with(BUILTIN_PREFIX);
    parser.expect(b',', "`,`")?;
    parser.list(Parser::pass_string)?;
    parser.expect(b',', "`,`")?;
    let mut env = BTreeMap::new();
    parser.list(|parser| {
        parser.expect(b'(', "`(`")?;
        let name = parser.string()?;
        parser.expect(b',', "`,`")?;
        if tells_needs(&name) {
            env.insert(name.into_owned(), parser.string()?.into_owned());
        } else {
            parser.pass_string()?;
        }
        parser.expect(b')', "`)`")
    })?;
    parser.end()?;
    let features = required_features(&env, &outputs);
    let is_fixed =
        !outputs.is_empty() && outputs.values().all(|output| matches!(output, Output::Fixed { .. }));
    Ok(Ancestry { system, is_builtin, is_fixed, prefers_local: prefers_local(&env), features, inputs })
}

struct Parser<'a> {
    file: &'a [u8],
    offset: usize,
}

impl<'a> Parser<'a> {
    fn new(file: &'a [u8]) -> Result<Self, AtermError> {
        if file.len() > MAX_FILE {
            return Err(AtermError::TooLong(file.len()));
        }
        Ok(Self { file, offset: 0 })
    }

    fn end(&mut self) -> Result<(), AtermError> {
        self.expect(b')', "`)`")?;
        if self.offset < self.file.len() {
            return Err(self.expected("the end of the file"));
        }
        Ok(())
    }

    /// Reads up to the first field; says whether inputs may be dynamic.
    fn header(&mut self) -> Result<bool, AtermError> {
        if self.skip(b"Derive(") {
            return Ok(false);
        }
        if !self.skip(b"DrvWithVersion(") {
            return Err(self.expected("`Derive(` or `DrvWithVersion(`"));
        }
        let format = self.string()?;
        if &*format != b"xp-dyn-drv" {
            let shown = &format[..format.len().min(64)];
            return Err(AtermError::UnknownFormat(String::from_utf8_lossy(shown).into_owned()));
        }
        self.expect(b',', "`,`")?;
        Ok(true)
    }

    fn outputs(&mut self) -> Result<BTreeMap<OutputName, Output>, AtermError> {
        let outputs = self.list(|parser| {
            parser.expect(b'(', "`(`")?;
            let name = parser.output_name()?;
            parser.expect(b',', "`,`")?;
            let path = parser.text("an output path")?;
            parser.expect(b',', "`,`")?;
            let algorithm = parser.text("a hash algorithm")?;
            parser.expect(b',', "`,`")?;
            let hash = parser.text("a hash")?;
            parser.expect(b')', "`)`")?;
            let output = Output::from_texts(&path, &algorithm, &hash)
                .map_err(|source| AtermError::BadOutput { offset: parser.offset, source })?;
            Ok((name, output))
        })?;
        Ok(outputs.into_iter().collect())
    }

    fn input_drvs(&mut self, may_be_dynamic: bool) -> Result<BTreeMap<DrvPath, InputDrv>, AtermError> {
        let inputs = self.list(|parser| {
            parser.expect(b'(', "`(`")?;
            let path = DrvPath::try_from(parser.path()?)
                .map_err(|source| AtermError::BadPath { offset: parser.offset, source })?;
            parser.expect(b',', "`,`")?;
            let depth = if may_be_dynamic { MAX_DYNAMIC_DEPTH } else { 0 };
            let input = parser.input_drv(depth, may_be_dynamic)?;
            parser.expect(b')', "`)`")?;
            Ok((path, input))
        })?;
        Ok(inputs.into_iter().collect())
    }

    fn input_drv(&mut self, depth: usize, may_be_dynamic: bool) -> Result<InputDrv, AtermError> {
        if !may_be_dynamic || self.peek() == Some(b'[') {
            return Ok(InputDrv { outputs: self.output_names()?, dynamic: BTreeMap::new() });
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Err(AtermError::TooDeep { offset: self.offset });
        };
        self.expect(b'(', "`[` or `(`")?;
        let outputs = self.output_names()?;
        self.expect(b',', "`,`")?;
        let dynamic = self.list(|parser| {
            parser.expect(b'(', "`(`")?;
            let name = parser.output_name()?;
            parser.expect(b',', "`,`")?;
            let input = parser.input_drv(depth, may_be_dynamic)?;
            parser.expect(b')', "`)`")?;
            Ok((name, input))
        })?;
        self.expect(b')', "`)`")?;
        Ok(InputDrv { outputs, dynamic: dynamic.into_iter().collect() })
    }

    fn output_names(&mut self) -> Result<BTreeSet<OutputName>, AtermError> {
        Ok(self.list(Self::output_name)?.into_iter().collect())
    }

    fn output_name(&mut self) -> Result<OutputName, AtermError> {
        let name = self.text("an output name")?;
        OutputName::parse(&name).map_err(|source| AtermError::BadPath { offset: self.offset, source })
    }

    fn path(&mut self) -> Result<StorePath, AtermError> {
        let path = self.text("a store path")?;
        StorePath::parse(&path).map_err(|source| AtermError::BadPath { offset: self.offset, source })
    }

    fn variable(&mut self) -> Result<(Vec<u8>, Vec<u8>), AtermError> {
        self.expect(b'(', "`(`")?;
        let name = self.string()?.into_owned();
        self.expect(b',', "`,`")?;
        let value = self.string()?.into_owned();
        self.expect(b')', "`)`")?;
        Ok((name, value))
    }

    fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, AtermError>,
    ) -> Result<Vec<T>, AtermError> {
        self.expect(b'[', "`[`")?;
        let mut items = Vec::new();
        if self.skip(b"]") {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.skip(b"]") {
                return Ok(items);
            }
            self.expect(b',', "`,` or `]`")?;
        }
    }

    fn text(&mut self, what: &'static str) -> Result<Cow<'a, str>, AtermError> {
        let not_utf8 = AtermError::NotUtf8 { offset: self.offset, what };
        match self.string()? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| not_utf8),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| not_utf8),
        }
    }

    /// A quoted string. Most have nothing escaped and are not copied.
    fn string(&mut self) -> Result<Cow<'a, [u8]>, AtermError> {
        self.expect(b'"', "a string")?;
        let start = self.offset;
        let mut owned: Option<Vec<u8>> = None;
        loop {
            let rest = &self.file[self.offset..];
            let Some(plain) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                self.offset = self.file.len();
                return Err(self.expected("the end of a string"));
            };
            if let Some(owned) = &mut owned {
                owned.extend_from_slice(&rest[..plain]);
            }
            self.offset += plain + 1;
            if rest[plain] == b'"' {
                let whole = &self.file[start..self.offset - 1];
                return Ok(owned.map_or(Cow::Borrowed(whole), Cow::Owned));
            }
            let Some(escaped) = self.peek() else { return Err(self.expected("an escaped character")) };
            let owned = owned.get_or_insert_with(|| self.file[start..start + plain].to_vec());
            owned.push(match escaped {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => other,
            });
            self.offset += 1;
        }
    }

    /// Passes over a quoted string.
    fn pass_string(&mut self) -> Result<(), AtermError> {
        self.expect(b'"', "a string")?;
        let mut is_escaped = false;
        for (at, byte) in self.file[self.offset..].iter().enumerate() {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => {
                    self.offset += at + 1;
                    return Ok(());
                }
                _ => {}
            }
        }
        self.offset = self.file.len();
        Err(self.expected("the end of a string"))
    }

    fn peek(&self) -> Option<u8> {
        self.file.get(self.offset).copied()
    }

    fn skip(&mut self, text: &[u8]) -> bool {
        let found = self.file[self.offset..].starts_with(text);
        if found {
            self.offset += text.len();
        }
        found
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), AtermError> {
        if self.skip(&[byte]) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn expected(&self, expected: &'static str) -> AtermError {
        AtermError::Expected { offset: self.offset, expected }
    }
}
