//! Which image there is to boot: the newest of those that were published.
//!
//! Pure. Asking EC2, and how long an answer is believed, is for the caller: images of NixOS are deprecated after 90 days
//! and then deleted, so none is ever pinned.

/// An image as DescribeImages describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFact {
    /// `ami-...`.
    pub id: String,
    /// `nixos/26.05.1234.abcdef-x86_64-linux`.
    pub name: String,
    /// `2026-06-28T03:14:15.000Z`: sorts as text.
    pub creation_date: String,
    /// EC2's word: `x86_64` or `arm64`.
    pub arch: String,
    /// `available`, or not.
    pub state: String,
    /// `/dev/xvda`.
    pub root_device: String,
}

/// The newest image of this architecture whose name matches (`*` and `?` are wildcards, as DescribeImages takes them).
///
/// A later release counts before a later date: NixOS publishes two releases each week. A `pre` or `beta` of a release
/// is older than anything released.
pub fn newest<'a>(images: &'a [ImageFact], name: &str, arch: &str) -> Option<&'a ImageFact> {
    let fits = |image: &&ImageFact| {
        image.arch == arch && image.state == "available" && matches(name.as_bytes(), image.name.as_bytes())
    };
    images.iter().filter(fits).max_by(|left, right| rank(left).cmp(&rank(right)))
}

fn rank(image: &ImageFact) -> impl Ord + '_ {
    let (release, is_final) = release(&image.name);
    (is_final, release, &image.creation_date, &image.id)
}

/// EC2's word for the processor of a Nix system, where EC2 has such processors.
pub fn arch_of(system: &str) -> Option<&'static str> {
    match system {
        "x86_64-linux" | "i686-linux" => Some("x86_64"),
        "aarch64-linux" | "armv7l-linux" | "armv6l-linux" => Some("arm64"),
        _ => None,
    }
}

/// The release in a name (`26.05` of `nixos/26.05.1234.abcdef-x86_64-linux`), and whether it is one. A name without any
/// is final: its date decides.
fn release(name: &str) -> (Option<(u32, u32)>, bool) {
    let label = name.rsplit('/').next().unwrap_or(name);
    let number =
        |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    let Some((year, rest)) = label.split_once('.') else { return (None, true) };
    let (Ok(year), Some(month)) = (year.parse(), number(rest)) else { return (None, true) };
    let suffix = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    (Some((year, month)), !(suffix.starts_with("pre") || suffix.starts_with("beta")))
}

/// Linear in practice: it goes back only to the last `*`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(seen) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted == byte => {
                at += 1;
                seen += 1;
            }
            Some(_) | None => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                seen = taken + 1;
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, name: &str, date: &str) -> ImageFact {
        let arch = if name.ends_with("aarch64-linux") { "arm64" } else { "x86_64" };
        ImageFact {
            id: id.into(),
            name: name.into(),
            creation_date: date.into(),
            arch: arch.into(),
            state: "available".into(),
            root_device: "/dev/xvda".into(),
        }
    }

    fn published() -> Vec<ImageFact> {
        vec![
            image("ami-1", "nixos/25.11.9000.aaaaaaa-x86_64-linux", "2026-07-05T03:00:00.000Z"),
            image("ami-2", "nixos/26.05.100.bbbbbbb-x86_64-linux", "2026-06-28T03:00:00.000Z"),
            image("ami-3", "nixos/26.05.99.ccccccc-x86_64-linux", "2026-06-21T03:00:00.000Z"),
            image("ami-4", "nixos/26.05.100.bbbbbbb-aarch64-linux", "2026-06-28T04:00:00.000Z"),
            image("ami-5", "nixos/26.11pre900.ddddddd-x86_64-linux", "2026-07-06T03:00:00.000Z"),
        ]
    }

    fn chosen(images: &[ImageFact], name: &str, arch: &str) -> String {
        newest(images, name, arch).map_or("none", |image| &image.id).to_owned()
    }

    #[test]
    fn the_newest_release_counts_before_the_newest_date() {
        let images = published();
        assert_eq!(chosen(&images, "nixos/*", "x86_64"), "ami-2");
        assert_eq!(chosen(&images, "nixos/25.11*", "x86_64"), "ami-1");
        assert_eq!(chosen(&images, "nixos/26.05*", "arm64"), "ami-4");
        // Asked for by name it is taken.
        assert_eq!(chosen(&images, "nixos/26.11*", "x86_64"), "ami-5");
        let mut reversed = images;
        reversed.reverse();
        assert_eq!(chosen(&reversed, "nixos/*", "x86_64"), "ami-2");
    }

    #[test]
    fn images_of_people_are_chosen_by_date() {
        let images = [
            image("ami-1", "our-builder-7", "2026-01-01T00:00:00.000Z"),
            image("ami-2", "our-builder-12", "2026-02-01T00:00:00.000Z"),
            image("ami-3", "their-builder", "2026-03-01T00:00:00.000Z"),
            image("ami-4", "determinate/nixos/epoch-1/x86_64-linux", "2026-03-01T00:00:00.000Z"),
        ];
        assert_eq!(chosen(&images, "our-builder-*", "x86_64"), "ami-2");
        assert_eq!(chosen(&images, "their-builder", "x86_64"), "ami-3");
        assert_eq!(chosen(&images, "determinate/*", "x86_64"), "ami-4");
    }

    #[test]
    fn what_does_not_fit_or_is_not_there_yet_is_no_choice() {
        let mut images = published();
        for image in &mut images {
            image.state = "pending".into();
        }
        assert_eq!(chosen(&images, "nixos/*", "x86_64"), "none");
        assert_eq!(chosen(&published(), "nixos/24.05*", "x86_64"), "none");
        assert_eq!(chosen(&published(), "nixos", "x86_64"), "none");
        assert_eq!(chosen(&published(), "nixos/*", "riscv64"), "none");
        assert_eq!(chosen(&[], "*", "x86_64"), "none");
    }

    #[test]
    fn wildcards_are_those_of_describe_images() {
        let fits = |pattern: &str, text: &str| matches(pattern.as_bytes(), text.as_bytes());
        for (pattern, text) in
            [("*", ""), ("a*c", "abbbc"), ("a?c", "abc"), ("*a*b*", "xxaxxbxx"), ("**", "a")]
        {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a", ""), ("a?c", "ac"), ("*b", "ba"), ("a*c*", "ab"), ("A", "a")]
        {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
        assert!(!fits(&"*a".repeat(50), &"a".repeat(40)), "and it ends");
    }
}
