//! A real systemd in a test host (tests/lab/systemd.sh), and our units in it.

#![allow(clippy::unwrap_used, dead_code, reason = "harness: a test that cannot go on says so by panicking")]

use std::path::Path;

use super::lab::Lab;

/// The releases whose lab root has systemd: there openssh-server depends on it.
pub(crate) const WITH_SYSTEMD: [&str; 2] = ["trixie", "forky"];

/// `systemctl`, for [`Lab::sh`].
pub(crate) const CTL: &str = "XDG_RUNTIME_DIR=/run/user/0 /usr/bin/systemctl --user";

/// It runs until it is stopped, or the host is gone.
pub(crate) struct Systemd(());

impl Systemd {
    /// Starts it.
    pub(crate) fn start(lab: &Lab) -> Self {
        lab.install("/t/systemd.sh", include_str!("../lab/systemd.sh"));
        lab.sh("/t/systemd.sh up");
        Self(())
    }

    /// Puts the units for pools that are processes of the machine in place.
    pub(crate) fn install_units(&self, lab: &Lab) {
        let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd");
        for (file, place) in [
            ("nix-broker.service", "nix-broker.service"),
            ("nix-broker.socket", "nix-broker.socket"),
            ("local.conf", "nix-broker.service.d/local.conf"),
        ] {
            let text = std::fs::read_to_string(contrib.join(file)).unwrap();
            lab.write(&format!("/etc/systemd/system/{place}"), &text);
        }
        self.ctl(lab, "daemon-reload");
    }

    /// Runs `systemctl` with these words; it must succeed.
    pub(crate) fn ctl(&self, lab: &Lab, words: &str) -> String {
        lab.sh(&format!("{CTL} {words} || {{ {CTL} --no-pager status nix-broker.service; tail -n 20 /var/log/systemd.log; exit 1; }}"))
    }

    /// The same, which may fail.
    pub(crate) fn try_ctl(&self, lab: &Lab, words: &str) -> bool {
        lab.output("root", &["sh", "-c", &format!("{CTL} {words}")]).status.success()
    }

    /// The states of socket and service.
    pub(crate) fn states(&self, lab: &Lab) -> String {
        lab.sh(&format!("{CTL} is-active nix-broker.socket nix-broker.service || true"))
    }

    /// Ends it with everything it runs.
    pub(crate) fn stop(self, lab: &Lab) {
        lab.sh("/t/systemd.sh down");
    }
}
