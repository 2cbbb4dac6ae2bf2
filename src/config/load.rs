//! From a path to a [`Config`]: reads the file, walks its top level, fills in the defaults.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use super::problem::Problems;
use super::section::Section;
use super::{Config, Problem, metrics, pool};
use crate::model::{Caps, HourlyRate, System};

/// Where the file is when nothing says otherwise.
pub const DEFAULT_PATH: &str = "/etc/nix-broker/config.toml";
/// Environment variable that names the file.
pub const PATH_VARIABLE: &str = "NIX_BROKER_CONFIG";

const DEFAULT_STATE_DIR: &str = "/var/lib/nix-broker";
const DEFAULT_DRAIN_GRACE: Duration = Duration::from_secs(600);
/// The kernel's limit on the path of a Unix socket, without the closing zero.
pub(super) const MAX_SOCKET_PATH: usize = 107;

/// What the file does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// The system of a pool that names none.
    pub system: System,
    /// What to expect of `slots = "auto"` on this machine.
    pub processors: u32,
    /// The state directory when the file names none.
    pub state_dir: PathBuf,
}

impl Defaults {
    /// What this machine and this process's environment say.
    pub fn here() -> Self {
        // systemd sets a list; the first is the one that StateDirectory= named first.
        let state_dir = std::env::var_os("STATE_DIRECTORY")
            .and_then(|list| std::env::split_paths(&list).next())
            .filter(|dir| dir.is_absolute())
            .unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR));
        let processors = std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok());
        Self { system: this_system(), processors: processors.unwrap_or(1), state_dir }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file.
    #[error("there is no configuration at `{0}`")]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read `{path}`")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was read, and says what cannot be done.
    #[error("`{}` has {}", path.display(), Count(problems.len()))]
    Invalid {
        /// Which.
        path: PathBuf,
        /// All of them, in the order of the file. Invariant: never empty.
        problems: Vec<Problem>,
    },
}

struct Count(usize);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 1 { f.write_str("a problem") } else { write!(f, "{} problems", self.0) }
    }
}

/// Reads and validates the file at this path, and the `known-hosts-file`s it names.
pub fn load(path: &Path, defaults: &Defaults) -> Result<Config, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            LoadError::Missing(path.to_owned())
        } else {
            LoadError::Unreadable { path: path.to_owned(), source }
        }
    })?;
    parse(&text, defaults, &|path| std::fs::read_to_string(path))
        .map_err(|problems| LoadError::Invalid { path: path.to_owned(), problems })
}

/// Validates the text of a file; `read` opens the files that it names.
pub fn parse(
    text: &str,
    defaults: &Defaults,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Config, Vec<Problem>> {
    let mut problems = Problems::new(text);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    for error in &syntax_errors {
        let line = problems.line(&error.span().unwrap_or(0..0));
        problems.error(line, "", format!("this is not TOML: {}", error.message()));
    }
    // What follows a syntax error is a guess of the parser; complaints about guesses help nobody.
    if problems.has_errors() {
        return Err(problems.into_parts().0);
    }

    let mut top = Section::new("", 1, document.get_ref());
    let socket = top.absolute_path("socket", &mut problems);
    if socket.as_ref().is_some_and(|socket| socket.as_os_str().len() > MAX_SOCKET_PATH) {
        let message = format!("longer than the {MAX_SOCKET_PATH} bytes that a socket's path may have");
        top.error("socket", message, &mut problems);
    }
    let state_dir = top.absolute_path("state-dir", &mut problems);
    let drain_grace = top.duration("drain-grace", Duration::ZERO, &mut problems);
    let caps = read_caps(&mut top, &mut problems);
    let metrics = metrics::read(&mut top, &mut problems);
    let pools = pool::read_all(&mut top, defaults, read, &mut problems);
    top.finish(&mut problems);

    let (errors, warnings) = problems.into_parts();
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Config {
        socket,
        state_dir: state_dir.unwrap_or_else(|| defaults.state_dir.clone()),
        drain_grace: drain_grace.unwrap_or(DEFAULT_DRAIN_GRACE),
        caps,
        metrics,
        pools: pools.into_iter().map(|read| read.spec).collect(),
        warnings,
    })
}

fn read_caps(top: &mut Section<'_>, problems: &mut Problems) -> Caps {
    let Some(mut section) = top.section("cost", problems) else { return Caps::default() };
    let caps = Caps {
        hour: section.money("max-per-hour", problems).map(HourlyRate),
        day: section.money("max-per-day", problems),
        month: section.money("max-per-month", problems),
    };
    section.finish(problems);
    caps
}

/// This machine as Nix calls it.
fn this_system() -> System {
    let processor = match std::env::consts::ARCH {
        "x86" => "i686",
        "powerpc64" if cfg!(target_endian = "little") => "powerpc64le",
        "arm" => "armv7l",
        other => other,
    };
    let kernel = if cfg!(target_os = "macos") { "darwin" } else { std::env::consts::OS };
    System::new(format!("{processor}-{kernel}"))
}
