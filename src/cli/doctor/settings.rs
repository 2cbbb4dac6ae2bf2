//! Nix's settings as text: `name = value` lines, as in nix.conf, `NIX_CONFIG` and what `nix config show` prints.

use super::facts::Settings;

/// Reads such lines. `include` gives the text of a file that an `include` line names; it takes care of loops.
pub(in crate::cli) fn parse(text: &str, include: &mut dyn FnMut(&str) -> Option<String>) -> Settings {
    let mut settings = Settings::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("include" | "!include"), Some(file)) => {
                if let Some(text) = include(file) {
                    settings.extend(parse(&text, include));
                }
            }
            (Some(name), Some("=")) => {
                let value = words.collect::<Vec<_>>().join(" ");
                settings.insert(name.to_owned(), value);
            }
            _ => {}
        }
    }
    settings
}

/// Reads lines that include nothing.
pub(in crate::cli) fn parse_plain(text: &str) -> Settings {
    parse(text, &mut |_| None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_nix_reads_them() {
        let mut includes = vec!["builders =\n!include next".to_owned()];
        let settings = parse(
            "# a comment\nbuild-hook = /a/broker-hook  --x # why\nbuilders = @/etc/nix/machines\ninclude extra\n\
             nonsense\nmax-jobs=3\n",
            &mut |_| includes.pop(),
        );
        let pairs: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("build-hook", "/a/broker-hook --x"), ("builders", "")]);
    }
}
