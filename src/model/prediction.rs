//! What is expected of a build before it runs.

use std::fmt;
use std::time::Duration;

/// How long a build will probably take on a builder, and what that is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// On the builder, without transfers: as many builds take longer as shorter.
    pub duration: Duration,
    /// Two of three builds take no less than this,
    pub least: Duration,
    /// and no more than this.
    pub most: Duration,
    /// Builds that it is drawn from.
    pub samples: u32,
    /// What those were.
    pub basis: Basis,
    /// What cannot begin before it has ended, as the longest chain of builds; nothing where the graph is not known.
    pub tail: Duration,
}

/// What a prediction is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// Nothing: no build has ended yet.
    Nothing,
    /// All builds for the same system.
    System,
    /// Builds of the same name but for the version.
    Package,
    /// Builds of the same name.
    Name,
}

/// What is expected as long as nothing is known.
const UNKNOWN: Duration = Duration::from_secs(60);

impl Prediction {
    /// What is expected as long as nothing is known.
    pub const UNKNOWN: Self = Self {
        duration: UNKNOWN,
        least: Duration::from_secs(6),
        most: Duration::from_secs(600),
        samples: 0,
        basis: Basis::Nothing,
        tail: Duration::ZERO,
    };

    /// Exactly this: for who knows, such as a simulation.
    pub fn exact(duration: Duration) -> Self {
        let samples = 1;
        Self { duration, least: duration, most: duration, samples, basis: Basis::Name, ..Self::UNKNOWN }
    }

    /// Whether it is about builds like this one, and not about just any.
    pub fn is_of_its_like(&self) -> bool {
        match self.basis {
            Basis::Name | Basis::Package => self.samples > 0,
            Basis::System | Basis::Nothing => false,
        }
    }
}

impl Default for Prediction {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl fmt::Display for Prediction {
    /// `about 3 min (2 to 5 min), from 7 builds of this name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let builds = if self.samples == 1 { "build" } else { "builds" };
        let about = Rough(self.duration);
        let (least, most, samples) = (Rough(self.least), Rough(self.most), self.samples);
        match self.basis {
            Basis::Nothing => return f.write_str("unknown, for nothing was built before"),
            Basis::System => write!(f, "about {about} ({least} to {most}), as most of {samples} {builds}")?,
            Basis::Package => {
                write!(
                    f,
                    "about {about} ({least} to {most}), from {samples} {builds} of this package in other versions"
                )?;
            }
            Basis::Name => {
                write!(f, "about {about} ({least} to {most}), from {samples} {builds} of this name")?;
            }
        }
        if self.tail.is_zero() { Ok(()) } else { write!(f, "; {} more wait for it", Rough(self.tail)) }
    }
}

/// A duration as precise as a prediction can be.
#[derive(Clone, Copy, Debug)]
pub struct Rough(pub Duration);

impl fmt::Display for Rough {
    /// `0.4 s`, `12 s`, `3 min`, `2.5 h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds < 9.95 {
            write!(f, "{seconds:.1} s")
        } else if seconds < 99.5 {
            write!(f, "{seconds:.0} s")
        } else if seconds < 5970.0 {
            write!(f, "{:.0} min", seconds / 60.0)
        } else {
            write!(f, "{:.1} h", seconds / 3600.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_shown_as_precisely_as_it_can_be_known() {
        let shown = |millis| Rough(Duration::from_millis(millis)).to_string();
        assert_eq!(
            [370, 12_400, 61_000, 99_600, 180_000, 9_000_000].map(shown),
            ["0.4 s", "12 s", "61 s", "2 min", "3 min", "2.5 h"]
        );
    }

    #[test]
    fn a_prediction_says_what_it_is_drawn_from() {
        assert_eq!(Prediction::UNKNOWN.to_string(), "unknown, for nothing was built before");
        let seconds = Duration::from_secs;
        let known = Prediction {
            least: seconds(120),
            most: seconds(300),
            samples: 7,
            ..Prediction::exact(seconds(180))
        };
        assert_eq!(known.to_string(), "about 3 min (2 min to 5 min), from 7 builds of this name");
        let awaited = Prediction { tail: seconds(3600 * 3), ..known };
        assert!(awaited.to_string().ends_with("; 3.0 h more wait for it"), "{awaited}");
        assert!(!Prediction { basis: Basis::System, ..known }.is_of_its_like());
    }
}
