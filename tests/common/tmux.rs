//! A real terminal for one test: a tmux server of its own, whose screen can be read and whose keys can be pressed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Generous: a deadline only bounds a failure.
const DEADLINE: Duration = Duration::from_secs(120);

/// Dropped, the server and all that runs in it are gone.
pub(crate) struct Tmux {
    dir: tempfile::TempDir,
}

impl Tmux {
    /// Runs a shell script in a terminal of this size; when it has ended, the screen stays.
    pub(crate) fn start(width: u16, height: u16, script: &str) -> Self {
        let tmux = Self { dir: tempfile::tempdir().unwrap() };
        let (width, height) = (width.to_string(), height.to_string());
        let script = format!("{script}\nsleep 100000");
        tmux.run(&["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, "sh", "-c", &script]);
        tmux
    }

    fn output(&self, words: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.env_remove("TMUX").arg("-S").arg(self.dir.path().join("s")).args(words);
        command.output().unwrap_or_else(|error| panic!("tmux: {error}; tests/lab/packages.sh installs it"))
    }

    fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Presses keys, as tmux names them: `j`, `Enter`, `Down`.
    pub(crate) fn press(&self, keys: &[&str]) {
        self.run(&[&["send-keys", "--"], keys].concat());
    }

    /// What is on the screen now.
    pub(crate) fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    pub(crate) fn resize(&self, width: u16, height: u16) {
        self.run(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
    }

    /// Waits until the screen is so, and returns it.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, reached: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let screen = self.screen();
            if reached(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "waited in vain for {what}; the screen is:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the screen has all of these words on it.
    #[track_caller]
    pub(crate) fn wait_for(&self, words: &[&str]) -> String {
        self.wait(&format!("{words:?}"), |screen| words.iter().all(|word| screen.contains(word)))
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _gone = self.output(&["kill-server"]);
    }
}
