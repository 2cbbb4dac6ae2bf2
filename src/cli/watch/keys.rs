//! Keys, from the bytes that a terminal in raw mode sends.

/// A key that means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    /// Control-C.
    Interrupt,
    /// Control-Z.
    Suspend,
    /// Control-L.
    Redraw,
}

/// The keys of what was read at once. A terminal sends a sequence in one piece; an escape that ends the piece is the key.
pub(super) fn parse(bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let key = match first {
            0x03 => Some(Key::Interrupt),
            0x0c => Some(Key::Redraw),
            0x1a => Some(Key::Suspend),
            b'\r' | b'\n' => Some(Key::Enter),
            0x1b => match after.first() {
                Some(b'[' | b'O') => {
                    let body = &after[1..];
                    let end = body.iter().position(|byte| (0x40..=0x7e).contains(byte));
                    let (sequence, left) = match end {
                        Some(end) => body.split_at(end + 1),
                        None => (body, &body[body.len()..]),
                    };
                    rest = left;
                    sequence_key(sequence)
                }
                _ => Some(Key::Escape),
            },
            byte if byte.is_ascii_graphic() || *byte == b' ' => Some(Key::Char(char::from(*byte))),
            _ => None,
        };
        keys.extend(key);
    }
    keys
}

/// What follows `ESC [` or `ESC O`.
fn sequence_key(sequence: &[u8]) -> Option<Key> {
    match sequence {
        b"A" => Some(Key::Up),
        b"B" => Some(Key::Down),
        b"H" | b"1~" | b"7~" => Some(Key::Home),
        b"F" | b"4~" | b"8~" => Some(Key::End),
        b"5~" => Some(Key::PageUp),
        b"6~" => Some(Key::PageDown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_both_modes_of_a_terminal() {
        assert_eq!(parse(b"\x1b[A\x1bOB"), [Key::Up, Key::Down]);
        assert_eq!(parse(b"jk"), [Key::Char('j'), Key::Char('k')]);
        assert_eq!(parse(b"\x1b"), [Key::Escape]);
        assert_eq!(parse(b"\r\x03\x1a"), [Key::Enter, Key::Interrupt, Key::Suspend]);
        assert_eq!(parse(b"\x1b[5~\x1b[6~\x1b[H\x1b[4~"), [Key::PageUp, Key::PageDown, Key::Home, Key::End]);
    }

    #[test]
    fn what_means_nothing_is_passed_over() {
        assert_eq!(parse(b"\x1b[1;5Cq"), [Key::Char('q')], "a sequence we do not know");
        assert_eq!(parse("\u{e9}\x01q".as_bytes()), [Key::Char('q')]);
        assert_eq!(parse(b"\x1b["), []);
    }
}
