//! Names of derivations, as Nix splits them into a package and its version.

/// The name without its version, which begins at the first dash that no letter follows (`parseDrvName`). What Nix or a
/// package adds behind the version (`-vendor`, `.tar.gz`) goes with it.
pub(super) fn package(name: &str) -> &str {
    let bytes = name.as_bytes();
    let begins_version =
        |at: &usize| bytes[*at] == b'-' && bytes.get(at + 1).is_some_and(|next| !next.is_ascii_alphabetic());
    // A name that is nothing but a version is its own package.
    (1..bytes.len()).find(begins_version).map_or(name, |at| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_begins_where_nix_says_it_does() {
        for (name, expected) in [
            ("hello-2.12.1", "hello"),
            ("python3.12-requests-2.32.3", "python3.12-requests"),
            ("gcc-wrapper-13.3.0", "gcc-wrapper"),
            ("source", "source"),
            ("nixos-system-tiger-26.05.20261101.abcdef", "nixos-system-tiger"),
            ("linux-6.12-modules", "linux"),
            ("trailing-", "trailing-"),
            ("-1", "-1"),
            ("", ""),
            ("zürich-1", "zürich"),
        ] {
            assert_eq!(package(name), expected, "{name}");
        }
    }
}
