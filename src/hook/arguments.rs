//! The command line of `broker-hook`, read by hand: Nix writes it, and a parser would be most of the program.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::ipc::message::{DEFAULT_SOCKET, SOCKET_VARIABLE};

/// `--help`.
pub(super) const USAGE: &str = "\
Usage: broker-hook [--socket PATH] VERBOSITY
       broker-hook [--socket PATH] --stdio [--store POOL]

The first form is for nix.conf, Nix adds the verbosity:
  build-hook = /path/to/broker-hook
The second form is a store that speaks Nix's worker protocol on its standard input and output:
  nix store info --store 'ssh-ng://localhost?remote-program=/path/to/broker-hook&remote-store=POOL'

Options:
  --socket PATH  the broker's socket [default: $NIX_BROKER_SOCKET or /run/nix-broker/broker.sock]
  --store POOL   be the store of this pool
  -h, --help     print this
  -V, --version  print the version
";

/// What this process is to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    /// The build hook.
    Hook {
        /// Where the broker listens.
        socket: PathBuf,
        /// Nix's verbosity, passed on as it is.
        verbosity: String,
    },
    /// The store endpoint.
    Endpoint {
        /// Where the broker listens.
        socket: PathBuf,
        /// Whose store to be.
        pool: Option<String>,
    },
    /// Print the usage.
    Help,
    /// Print the version.
    Version,
}

/// Why the command line makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ArgumentsError {
    /// An option stands last that needs a value.
    #[error("`{0}` needs a value")]
    NoValue(&'static str),
    /// Not one of ours.
    #[error("unexpected argument `{0}`; see `broker-hook --help`")]
    Unexpected(String),
    /// Neither form.
    #[error("Nix starts this program, as its `build-hook`; see `broker-hook --help`")]
    Nothing,
}

impl Arguments {
    /// Reads the words after the program's name.
    pub(super) fn read(words: impl Iterator<Item = OsString>) -> Result<Self, ArgumentsError> {
        let default_socket = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
        Self::read_with(words, default_socket)
    }

    fn read_with(
        mut words: impl Iterator<Item = OsString>,
        default_socket: Option<OsString>,
    ) -> Result<Self, ArgumentsError> {
        let mut socket = default_socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
        let (mut verbosity, mut stdio, mut pool) = (None, false, None);
        while let Some(word) = words.next() {
            let text = word.to_string_lossy().into_owned();
            match &*text {
                "-h" | "--help" => return Ok(Self::Help),
                "-V" | "--version" => return Ok(Self::Version),
                "--stdio" => stdio = true,
                "--socket" => socket = words.next().ok_or(ArgumentsError::NoValue("--socket"))?,
                "--store" => {
                    let value = words.next().ok_or(ArgumentsError::NoValue("--store"))?;
                    pool = Some(value.to_string_lossy().into_owned());
                }
                number if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
                    verbosity = Some(text);
                }
                _ => return Err(ArgumentsError::Unexpected(text)),
            }
        }
        let socket = PathBuf::from(socket);
        match (stdio, verbosity) {
            (true, _) => Ok(Self::Endpoint { socket, pool: pool.filter(|pool| !pool.is_empty()) }),
            (false, Some(verbosity)) => Ok(Self::Hook { socket, verbosity }),
            (false, None) => Err(ArgumentsError::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Arguments, ArgumentsError> {
        Arguments::read_with(words.iter().map(OsString::from), None)
    }

    #[test]
    fn each_form_is_told_from_the_others() {
        assert_eq!(
            read(&["3"]),
            Ok(Arguments::Hook { socket: DEFAULT_SOCKET.into(), verbosity: "3".to_owned() })
        );
        assert_eq!(
            read(&["--socket", "/tmp/s", "4"]),
            Ok(Arguments::Hook { socket: "/tmp/s".into(), verbosity: "4".to_owned() })
        );
        assert_eq!(
            read(&["--stdio", "--store", "tiger"]),
            Ok(Arguments::Endpoint { socket: DEFAULT_SOCKET.into(), pool: Some("tiger".to_owned()) })
        );
        assert_eq!(read(&["--version"]), Ok(Arguments::Version));
        assert_eq!(read(&["--stdio", "--help"]), Ok(Arguments::Help));
    }

    #[test]
    fn nonsense_is_said_so() {
        assert_eq!(read(&[]), Err(ArgumentsError::Nothing));
        assert_eq!(read(&["3", "--socket"]), Err(ArgumentsError::NoValue("--socket")));
        assert_eq!(read(&["--what", "3"]), Err(ArgumentsError::Unexpected("--what".to_owned())));
    }
}
