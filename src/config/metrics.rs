//! The table `[metrics]`: where programs read what the broker counts.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::load::MAX_SOCKET_PATH;
use super::problem::{Problems, quote};
use super::section::Section;

/// A place that only this machine reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

pub(super) fn read(top: &mut Section<'_>, problems: &mut Problems) -> Option<MetricsAddress> {
    let mut section = top.section("metrics", problems)?;
    let listen = section.text("listen", problems);
    if listen.is_none() && !section.has("listen") {
        section.error("listen", "`[metrics]` needs `listen`, such as \"127.0.0.1:9119\"", problems);
    }
    let address = listen.map(parse).transpose();
    if let Err(message) = &address {
        section.error("listen", message, problems);
    }
    section.finish(problems);
    address.ok().flatten()
}

/// Metrics name pools and say what is spent, without a password: they are for this machine.
fn parse(text: &str) -> Result<MetricsAddress, String> {
    if text.starts_with('/') {
        if text.len() > MAX_SOCKET_PATH || text.contains(['\0', '\n']) {
            return Err(format!("{} cannot be the path of a socket", quote(text)));
        }
        return Ok(MetricsAddress::Unix(PathBuf::from(text)));
    }
    let Ok(address) = text.parse::<SocketAddr>() else {
        let message = "is neither an address with a port, such as 127.0.0.1:9119, nor the path of a socket";
        return Err(format!("{} {message}", quote(text)));
    };
    if !address.ip().is_loopback() {
        let message = "can be reached from other machines; use 127.0.0.1 or [::1], and a proxy that asks for a password";
        return Err(format!("{} {message}", quote(text)));
    }
    if address.port() == 0 {
        return Err("port 0 is another one at every start; name one, such as 9119".to_owned());
    }
    Ok(MetricsAddress::Tcp(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{good, lines, parse as parse_file};

    const POOL: &str = "[[pool]]\nname = \"p\"\n[pool.local]\n";

    #[test]
    fn metrics_are_off_and_stay_on_this_machine() {
        assert_eq!(good(POOL).metrics, None);
        let listen = |address: &str| format!("{POOL}[metrics]\nlisten = \"{address}\"\n");
        let tcp = |address: &str| Some(MetricsAddress::Tcp(address.parse().unwrap()));
        assert_eq!(good(&listen("127.0.0.1:9119")).metrics, tcp("127.0.0.1:9119"));
        assert_eq!(good(&listen("[::1]:9119")).metrics, tcp("[::1]:9119"));
        let unix = MetricsAddress::Unix("/run/nix-broker/metrics.sock".into());
        assert_eq!(good(&listen("/run/nix-broker/metrics.sock")).metrics, Some(unix));
        let complaints: Vec<String> =
            ["0.0.0.0:9119", "10.0.0.7:9119", "localhost", "run/metrics", "127.0.0.1:0"]
                .iter()
                .map(|address| lines(&parse_file(&listen(address)).unwrap_err()))
                .chain([
                    lines(&parse_file(&format!("{POOL}[metrics]\n")).unwrap_err()),
                    lines(&parse_file(&format!("{POOL}[metrics]\nlistn = 5\n")).unwrap_err()),
                    lines(&parse_file(&format!("{POOL}[metrics]\nlisten = 9119\n")).unwrap_err()),
                ])
                .collect();
        insta::assert_snapshot!(complaints.join("\n"), @r#"
        config.toml:5: metrics.listen: `0.0.0.0:9119` can be reached from other machines; use 127.0.0.1 or [::1], and a proxy that asks for a password
        config.toml:5: metrics.listen: `10.0.0.7:9119` can be reached from other machines; use 127.0.0.1 or [::1], and a proxy that asks for a password
        config.toml:5: metrics.listen: `localhost` is neither an address with a port, such as 127.0.0.1:9119, nor the path of a socket
        config.toml:5: metrics.listen: `run/metrics` is neither an address with a port, such as 127.0.0.1:9119, nor the path of a socket
        config.toml:5: metrics.listen: port 0 is another one at every start; name one, such as 9119
        config.toml:4: metrics.listen: `[metrics]` needs `listen`, such as "127.0.0.1:9119"
        config.toml:4: metrics.listen: `[metrics]` needs `listen`, such as "127.0.0.1:9119"
        config.toml:5: metrics.listn: unknown key; did you mean `listen`?
        config.toml:5: metrics.listen: expected text in quotes, found a number
        "#);
    }
}
