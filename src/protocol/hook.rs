//! The build-hook protocol as Nix speaks it on the hook's standard input: settings, requests, lists of paths.
//!
//! Owns the bytes and their bounds, in both directions (the importer replays them to the stock client); what the
//! settings mean and what to answer is left to [`crate::hook`]. The form has no version field and changed once, in
//! Nix 2.4 (the second list holds output names since then, store paths before).
//!
//! Blocks that are only passed on are kept as the bytes they came in, so that a waiting hook holds one allocation and
//! the stock client is told exactly what Nix said.

use std::io::{self, BufRead, Read};

/// The word that opens a request.
const TRY: &[u8] = b"try";
/// One string of the settings block; `netrc`-like settings are the longest ones seen.
const MAX_SETTING: u64 = 16 << 20;
/// One word of a request, and one path or output name.
const MAX_WORD: u64 = 64 << 10;
/// Features of one request.
const MAX_FEATURES: u64 = 10_000;
/// Everything that one block may hold: the settings, or both lists.
const MAX_BLOCK: usize = 64 << 20;

/// Why Nix's bytes cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum HookReadError {
    /// The stream ended.
    #[error("the input ended in the middle")]
    Ended,
    /// The stream failed.
    #[error("read the input")]
    Io(#[source] io::Error),
    /// A length or a count is past its bound.
    #[error("a length of {0} is too long")]
    TooLong(u64),
    /// The zeroes that fill a string up to eight bytes are something else.
    #[error("the padding of a string is not zero")]
    BadPadding,
}

type Result<T> = std::result::Result<T, HookReadError>;

/// The settings block, as it came.
///
/// It holds secrets (`access-tokens`): nothing prints or forwards it, except to the stock client.
pub struct SettingsBlock(Vec<u8>);

impl std::fmt::Debug for SettingsBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SettingsBlock({} bytes)", self.0.len())
    }
}

impl SettingsBlock {
    /// Name and value of every setting, in Nix's order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            take_number(&mut rest).filter(|&marker| marker != 0)?;
            Some((take_string(&mut rest)?, take_string(&mut rest)?))
        })
    }

    /// The value of one setting. `None` when Nix did not send it (Lix sends only what was changed).
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value)
    }

    /// The block as Nix sent it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The block with one setting replaced, or added.
    pub fn with(&self, name: &str, value: &str) -> Vec<u8> {
        let mut block = Vec::with_capacity(self.0.len() + name.len() + value.len() + 40);
        for (known, old) in self.iter().filter(|(known, _)| *known != name.as_bytes()) {
            put_number(&mut block, 1);
            put_string(&mut block, known);
            put_string(&mut block, old);
        }
        put_number(&mut block, 1);
        put_string(&mut block, name.as_bytes());
        put_string(&mut block, value.as_bytes());
        put_number(&mut block, 0);
        block
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// Whether Nix could start it locally right now.
    pub am_willing: bool,
    /// The derivation's system.
    pub system: String,
    /// Full path of the derivation.
    pub drv: String,
    /// Its required features.
    pub features: Vec<String>,
}

impl Try {
    /// The request as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_string(&mut bytes, TRY);
        put_number(&mut bytes, u64::from(self.am_willing));
        put_string(&mut bytes, self.system.as_bytes());
        put_string(&mut bytes, self.drv.as_bytes());
        put_number(&mut bytes, self.features.len() as u64);
        for feature in &self.features {
            put_string(&mut bytes, feature.as_bytes());
        }
        bytes
    }
}

/// What follows an accept: the inputs, and the outputs that are wanted; as they came.
pub struct Lists {
    bytes: Vec<u8>,
    outputs_at: usize,
}

impl std::fmt::Debug for Lists {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lists({} bytes)", self.bytes.len())
    }
}

impl Lists {
    /// Full paths of the inputs.
    pub fn inputs(&self) -> Vec<String> {
        strings(&self.bytes)
    }

    /// Names of the wanted outputs; empty when Nix is older than 2.4 and sent paths instead.
    pub fn wanted_outputs(&self) -> Vec<String> {
        let outputs = strings(&self.bytes[self.outputs_at..]);
        if outputs.iter().any(|output| output.contains('/')) { Vec::new() } else { outputs }
    }

    /// Both lists as Nix sent them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads what Nix sends. Blocking.
#[derive(Debug)]
pub struct HookInput<R> {
    input: R,
}

impl<R: BufRead> HookInput<R> {
    /// Reads from here.
    pub fn new(input: R) -> Self {
        Self { input }
    }

    /// The settings block, which comes first.
    pub fn settings(&mut self) -> Result<SettingsBlock> {
        let mut block = Vec::new();
        while self.copy_number(&mut block)? != 0 {
            self.copy_string(&mut block, MAX_SETTING)?;
            self.copy_string(&mut block, MAX_SETTING)?;
        }
        block.shrink_to_fit();
        Ok(SettingsBlock(block))
    }

    /// Waits until a request begins; `false` when none will: Nix has closed, or sends something that is no request.
    ///
    /// With `skip_lists`, lists that nobody asked for may stand before it: a Nix that sends them with every request
    /// leaves them there after a decline.
    pub fn request_begins(&mut self, skip_lists: bool) -> bool {
        self.find_request(skip_lists).unwrap_or(false)
    }

    fn find_request(&mut self, skip_lists: bool) -> Result<bool> {
        let mut word = Vec::with_capacity(8);
        put_string(&mut word, TRY);
        let word = u64::from_le_bytes([
            word[8], word[9], word[10], word[11], word[12], word[13], word[14], word[15],
        ]);
        loop {
            let first = self.number()?;
            if first == TRY.len() as u64 {
                let second = self.number()?;
                if second == word {
                    return Ok(true);
                }
                // A list of three, whose first string has this length.
                if !skip_lists {
                    return Ok(false);
                }
                self.skip_string(second)?;
                self.skip_strings(first - 1)?;
            } else if skip_lists {
                self.skip_strings(first)?;
            } else {
                return Ok(false);
            }
            let outputs = self.number()?;
            self.skip_strings(outputs)?;
        }
    }

    /// The rest of a request that has begun.
    pub fn request(&mut self) -> Result<Try> {
        let am_willing = self.number()? != 0;
        let system = self.word()?;
        let drv = self.word()?;
        let count = self.number()?;
        if count > MAX_FEATURES {
            return Err(HookReadError::TooLong(count));
        }
        let features = (0..count).map(|_| self.word()).collect::<Result<_>>()?;
        Ok(Try { am_willing, system, drv, features })
    }

    /// Both lists, after an accept.
    pub fn lists(&mut self) -> Result<Lists> {
        let mut bytes = Vec::new();
        self.copy_list(&mut bytes)?;
        let outputs_at = bytes.len();
        self.copy_list(&mut bytes)?;
        bytes.shrink_to_fit();
        Ok(Lists { bytes, outputs_at })
    }

    fn copy_list(&mut self, block: &mut Vec<u8>) -> Result<()> {
        for _ in 0..self.copy_number(block)? {
            self.copy_string(block, MAX_WORD)?;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.input.read_exact(&mut bytes).map_err(read_error)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn word(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        self.copy_string(&mut bytes, MAX_WORD)?;
        let mut rest = &bytes[..];
        // Bytes that are no text cannot name anything we have; they are shown as such, and declined.
        Ok(take_string(&mut rest).map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default())
    }

    fn copy_number(&mut self, block: &mut Vec<u8>) -> Result<u64> {
        let number = self.number()?;
        if block.len() > MAX_BLOCK {
            return Err(HookReadError::TooLong(block.len() as u64));
        }
        put_number(block, number);
        Ok(number)
    }

    fn copy_string(&mut self, block: &mut Vec<u8>, max: u64) -> Result<()> {
        let len = self.copy_number(block)?;
        if len > max {
            return Err(HookReadError::TooLong(len));
        }
        let padded = padded(len);
        let start = block.len();
        let read = self.input.by_ref().take(padded).read_to_end(block).map_err(read_error)?;
        if (read as u64) < padded {
            return Err(HookReadError::Ended);
        }
        // A length that was read fits: it is at most `MAX_SETTING`.
        if block[start + len as usize..].iter().any(|&byte| byte != 0) {
            return Err(HookReadError::BadPadding);
        }
        Ok(())
    }

    fn skip_string(&mut self, len: u64) -> Result<()> {
        if len > MAX_WORD {
            return Err(HookReadError::TooLong(len));
        }
        let skipped =
            io::copy(&mut self.input.by_ref().take(padded(len)), &mut io::sink()).map_err(read_error)?;
        if skipped < padded(len) { Err(HookReadError::Ended) } else { Ok(()) }
    }

    fn skip_strings(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let len = self.number()?;
            self.skip_string(len)?;
        }
        Ok(())
    }
}

fn read_error(error: io::Error) -> HookReadError {
    if error.kind() == io::ErrorKind::UnexpectedEof { HookReadError::Ended } else { HookReadError::Io(error) }
}

fn padded(len: u64) -> u64 {
    len.next_multiple_of(8)
}

fn put_number(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn put_string(bytes: &mut Vec<u8>, string: &[u8]) {
    put_number(bytes, string.len() as u64);
    bytes.extend_from_slice(string);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// The strings of a list that was checked when it was read.
fn strings(mut list: &[u8]) -> Vec<String> {
    let count = take_number(&mut list).unwrap_or(0);
    let next = |_| take_string(&mut list).map(|string| String::from_utf8_lossy(string).into_owned());
    (0..count).map_while(next).collect()
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*number))
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_number(rest)?;
    let (string, after) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    let padding = usize::try_from(padded(len) - len).ok()?;
    *rest = after.get(padding..)?;
    Some(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_number(&mut bytes, items.len() as u64);
        items.iter().for_each(|item| put_string(&mut bytes, item.as_bytes()));
        bytes
    }

    fn request() -> Try {
        Try {
            am_willing: true,
            system: "x86_64-linux".into(),
            drv: "/nix/store/x.drv".into(),
            features: vec!["kvm".into(), "big-parallel".into()],
        }
    }

    fn settings(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, value) in pairs {
            put_number(&mut bytes, 1);
            put_string(&mut bytes, name.as_bytes());
            put_string(&mut bytes, value.as_bytes());
        }
        put_number(&mut bytes, 0);
        bytes
    }

    #[test]
    fn a_conversation_is_read_in_order() {
        let mut bytes = settings(&[("cores", "4"), ("builders", "@/etc/nix/machines")]);
        bytes.extend(request().encode());
        bytes.extend(list(&["/nix/store/a", "/nix/store/bcdefgh"]));
        bytes.extend(list(&["dev", "out"]));
        let mut input = HookInput::new(&bytes[..]);
        let block = input.settings().unwrap();
        assert_eq!(block.get("cores"), Some(&b"4"[..]));
        assert_eq!(block.get("timeout"), None);
        assert!(input.request_begins(false));
        assert_eq!(input.request().unwrap(), request());
        let lists = input.lists().unwrap();
        assert_eq!(lists.inputs(), ["/nix/store/a", "/nix/store/bcdefgh"]);
        assert_eq!(lists.wanted_outputs(), ["dev", "out"]);
        assert!(bytes.ends_with(lists.as_bytes()));
        assert!(!input.request_begins(false));
    }

    #[test]
    fn a_replaced_setting_stands_once_and_the_others_stay() {
        let block =
            HookInput::new(&settings(&[("a", "1"), ("builders", "old"), ("b", "2")])[..]).settings().unwrap();
        let replaced = HookInput::new(&block.with("builders", "new")[..]).settings().unwrap();
        let all: Vec<_> = replaced.iter().collect();
        assert_eq!(all, [(&b"a"[..], &b"1"[..]), (b"b", b"2"), (b"builders", b"new")]);
        let added = HookInput::new(&block.with("c", "3")[..]).settings().unwrap();
        assert_eq!(added.iter().count(), 4);
    }

    #[test]
    fn paths_in_place_of_output_names_mean_all_outputs() {
        let mut bytes = list(&[]);
        bytes.extend(list(&["/nix/store/out"]));
        assert!(HookInput::new(&bytes[..]).lists().unwrap().wanted_outputs().is_empty());
    }

    #[test]
    fn unread_lists_before_a_request_are_skipped_even_when_they_look_like_one() {
        for inputs in
            [&[][..], &["a"], &["a", "b", "c"], &["aaaaaaaaaaaaaaaa", "b", "c"], &["try", "try", "try"]]
        {
            let mut bytes = list(inputs);
            bytes.extend(list(&["out", "dev", "man"]));
            bytes.extend(request().encode());
            let mut input = HookInput::new(&bytes[..]);
            assert!(input.request_begins(true), "{inputs:?}");
            assert_eq!(input.request().unwrap(), request());
            assert!(!input.request_begins(true));
        }
    }

    #[test]
    fn something_else_than_a_request_is_a_quiet_end() {
        for bytes in
            [&b""[..], b"\x03\0\0", &list(&["quit"])[8..], &list(&["tried"])[8..], &list(&["a", "b", "c"])]
        {
            assert!(!HookInput::new(bytes).request_begins(false));
        }
        assert!(!HookInput::new(&list(&["quit"])[8..]).request_begins(true));
    }

    #[test]
    fn every_truncation_is_an_end_and_no_panic() {
        let block = settings(&[("cores", "4")]);
        for end in 0..block.len() {
            assert!(matches!(HookInput::new(&block[..end]).settings(), Err(HookReadError::Ended)), "{end}");
        }
        let mut bytes = list(&["/nix/store/a"]);
        bytes.extend(list(&["out"]));
        for end in 0..bytes.len() {
            assert!(matches!(HookInput::new(&bytes[..end]).lists(), Err(HookReadError::Ended)), "{end}");
        }
    }

    #[test]
    fn hostile_lengths_are_refused_before_anything_is_allocated() {
        let huge = u64::MAX.to_le_bytes();
        let mut one = Vec::new();
        put_number(&mut one, 1);
        let strings = [&one[..], &huge].concat();
        assert!(matches!(HookInput::new(&strings[..]).settings(), Err(HookReadError::TooLong(_))));
        assert!(matches!(HookInput::new(&strings[..]).lists(), Err(HookReadError::TooLong(_))));
        assert!(matches!(HookInput::new(&huge[..]).lists(), Err(HookReadError::Ended)));
        assert!(!HookInput::new(&huge[..]).request_begins(true));
        let mut features = Vec::new();
        put_number(&mut features, 1);
        put_string(&mut features, b"s");
        put_string(&mut features, b"d");
        features.extend(huge);
        assert!(matches!(HookInput::new(&features[..]).request(), Err(HookReadError::TooLong(_))));
    }

    #[test]
    fn dirt_in_the_padding_is_refused() {
        let mut bytes = list(&["abc"]);
        *bytes.last_mut().unwrap() = 1;
        bytes.extend(list(&[]));
        assert!(matches!(HookInput::new(&bytes[..]).lists(), Err(HookReadError::BadPadding)));
    }
}
