//! Which processor each family of instance types has, and whose code that processor runs.
//!
//! A derivation says what it was tuned for with the feature `gccarch-NAME`, `NAME` being what GCC takes as `-march=`
//! (`znver3`, `skylake`, `x86-64-v3`, `armv8.2-a`). Each row lists what its processor adds to the one it is a superset
//! of; supersets were computed with GCC's own tables, not taken from nixpkgs' `inferiors`, which is wrong for Cascade
//! Lake and Cooper Lake (they lack what `cannonlake` code uses) and silent about `cascadelake` code on Ice Lake.

use std::collections::BTreeSet;

use super::types::Architecture;
use crate::model::Feature;

const PREFIX: &str = "gccarch-";

/// One generation of processors on EC2.
#[derive(Debug, PartialEq, Eq)]
pub struct Processor {
    /// What its maker calls it.
    pub name: &'static str,
    /// Of its instance types.
    pub architecture: Architecture,
    /// How fast compilers run on one of its cores, its sibling idle, in percent of Zen 3 (Milan). Judgement, from clock rates
    /// and generations: no measurement of ours.
    pub speed: u32,
    /// The one `gccarch` that is this very processor, for pools that are `exact`. `None` where the family is a lottery
    /// between two processors.
    pub own: Option<&'static str>,
    /// What it runs beyond `below`.
    adds: &'static [&'static str],
    /// Everything that this one runs, it runs as well.
    below: Option<&'static Self>,
    /// The families of instance types that have it.
    pub families: &'static [&'static str],
}

/// What every x86 processor on EC2 runs.
const COMMON_X86: Processor = Processor {
    name: "x86",
    architecture: Architecture::X86_64,
    speed: 100,
    own: None,
    adds: &[
        "x86-64",
        "x86-64-v2",
        "x86-64-v3",
        "nehalem",
        "westmere",
        "sandybridge",
        "ivybridge",
        "haswell",
        "broadwell",
        "skylake",
    ],
    below: None,
    families: &[],
};

static SKYLAKE_SP: Processor = Processor {
    name: "Skylake-SP or Cascade Lake",
    architecture: Architecture::X86_64,
    speed: 80,
    // Which of the two an instance gets is decided by chance, so it never offers what only Cascade Lake has.
    own: None,
    adds: &["x86-64-v4", "skylake-avx512"],
    below: Some(&COMMON_X86),
    families: &["c5", "c5d", "c5n", "m5", "m5d", "m5n", "m5dn", "r5", "r5d", "r5n", "r5dn", "t3"],
};

static ICE_LAKE_SP: Processor = Processor {
    name: "Ice Lake-SP",
    architecture: Architecture::X86_64,
    speed: 95,
    own: Some("icelake-server"),
    adds: &["cannonlake", "cascadelake", "icelake-client", "icelake-server"],
    below: Some(&SKYLAKE_SP),
    families: &["c6i", "c6id", "c6in", "m6i", "m6id", "m6in", "m6idn", "r6i", "r6id", "r6in", "r6idn"],
};

static SAPPHIRE_RAPIDS: Processor = Processor {
    name: "Sapphire Rapids",
    architecture: Architecture::X86_64,
    speed: 105,
    own: Some("sapphirerapids"),
    adds: &["cooperlake", "sapphirerapids", "emeraldrapids"],
    below: Some(&ICE_LAKE_SP),
    families: &["c7i", "c7i-flex", "m7i", "m7i-flex", "r7i", "r7iz", "i7i", "i7ie"],
};

static GRANITE_RAPIDS: Processor = Processor {
    name: "Granite Rapids",
    architecture: Architecture::X86_64,
    speed: 125,
    own: Some("graniterapids"),
    adds: &["graniterapids"],
    below: Some(&SAPPHIRE_RAPIDS),
    families: &["c8i", "c8i-flex", "c8id", "m8i", "m8i-flex", "m8id", "r8i", "r8i-flex", "r8id", "x8i"],
};

static NAPLES: Processor = Processor {
    name: "Naples",
    architecture: Architecture::X86_64,
    speed: 60,
    own: Some("znver1"),
    adds: &["znver1"],
    below: Some(&COMMON_X86),
    families: &["m5a", "m5ad", "r5a", "r5ad", "t3a"],
};

static ROME: Processor = Processor {
    name: "Rome",
    architecture: Architecture::X86_64,
    speed: 85,
    own: Some("znver2"),
    adds: &["znver2"],
    below: Some(&NAPLES),
    families: &["c5a", "c5ad"],
};

static MILAN: Processor = Processor {
    name: "Milan",
    architecture: Architecture::X86_64,
    speed: 100,
    own: Some("znver3"),
    adds: &["znver3"],
    below: Some(&ROME),
    families: &["c6a", "m6a", "r6a", "hpc6a"],
};

static GENOA: Processor = Processor {
    name: "Genoa",
    architecture: Architecture::X86_64,
    speed: 115,
    own: Some("znver4"),
    adds: &["x86-64-v4", "znver4"],
    below: Some(&MILAN),
    families: &["c7a", "m7a", "r7a", "hpc7a"],
};

static TURIN: Processor = Processor {
    name: "Turin",
    architecture: Architecture::X86_64,
    speed: 140,
    own: Some("znver5"),
    adds: &["znver5"],
    below: Some(&GENOA),
    families: &["c8a", "m8a", "r8a", "m8azn"],
};

static CORTEX_A72: Processor = Processor {
    name: "Graviton (Cortex-A72)",
    architecture: Architecture::Arm64,
    speed: 35,
    own: Some("cortex-a72"),
    adds: &["armv8-a", "cortex-a53", "cortex-a72"],
    below: None,
    families: &["a1"],
};

static NEOVERSE_N1: Processor = Processor {
    name: "Graviton2 (Neoverse N1)",
    architecture: Architecture::Arm64,
    speed: 70,
    own: Some("armv8.2-a"),
    adds: &["armv8-a", "armv8.1-a", "armv8.2-a"],
    below: None,
    families: &["c6g", "c6gd", "c6gn", "m6g", "m6gd", "r6g", "r6gd", "t4g"],
};

static NEOVERSE_V1: Processor = Processor {
    name: "Graviton3 (Neoverse V1)",
    architecture: Architecture::Arm64,
    speed: 85,
    own: Some("armv8.4-a"),
    adds: &["armv8.3-a", "armv8.4-a"],
    below: Some(&NEOVERSE_N1),
    families: &["c7g", "c7gd", "c7gn", "m7g", "m7gd", "r7g", "r7gd"],
};

static NEOVERSE_V2: Processor = Processor {
    name: "Graviton4 (Neoverse V2)",
    architecture: Architecture::Arm64,
    speed: 105,
    own: Some("armv9-a"),
    adds: &["armv8.5-a", "armv9-a"],
    below: Some(&NEOVERSE_V1),
    families: &["c8g", "c8gd", "c8gn", "m8g", "m8gd", "r8g", "r8gd", "x8g", "i8g"],
};

static NEOVERSE_V3: Processor = Processor {
    name: "Graviton5 (Neoverse V3)",
    architecture: Architecture::Arm64,
    speed: 120,
    own: Some("armv9.2-a"),
    adds: &["armv8.6-a", "armv8.7-a", "armv9.1-a", "armv9.2-a"],
    below: Some(&NEOVERSE_V2),
    families: &["c9g", "c9gd", "m9g"],
};

/// All of them.
pub static PROCESSORS: [&Processor; 14] = [
    &SKYLAKE_SP,
    &ICE_LAKE_SP,
    &SAPPHIRE_RAPIDS,
    &GRANITE_RAPIDS,
    &NAPLES,
    &ROME,
    &MILAN,
    &GENOA,
    &TURIN,
    &CORTEX_A72,
    &NEOVERSE_N1,
    &NEOVERSE_V1,
    &NEOVERSE_V2,
    &NEOVERSE_V3,
];

/// Names that GCC knows and whose code nothing on EC2 may run: the processor is of no server, or (`tigerlake`) EC2's
/// lacks some of its instructions.
const NOT_ON_EC2: &[&str] = &[
    "alderlake",
    "amdfam10",
    "arrowlake",
    "atom",
    "bdver1",
    "bdver2",
    "bdver3",
    "bdver4",
    "bonnell",
    "btver1",
    "btver2",
    "core2",
    "goldmont",
    "goldmont-plus",
    "k8",
    "lunarlake",
    "meteorlake",
    "pantherlake",
    "raptorlake",
    "rocketlake",
    "sierraforest",
    "silvermont",
    "tigerlake",
    "tremont",
];

/// Why a `gccarch-` feature is none that an EC2 pool can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GccarchError {
    /// Nobody knows the name.
    #[error("`gccarch-{name}` names no processor that is known here; known are {}", known().join(", "))]
    Unknown {
        /// What follows `gccarch-`.
        name: String,
    },
    /// It exists, elsewhere.
    #[error(
        "no processor on EC2 runs code for `{name}` safely; such builds have to stay on machines of your own"
    )]
    NotOnEc2 {
        /// What follows `gccarch-`.
        name: String,
    },
}

impl Processor {
    /// Whether code for this `gccarch` runs here.
    pub fn runs(&self, gccarch: &str) -> bool {
        self.gccarchs().any(|known| known == gccarch)
    }

    /// Every `gccarch` whose code runs here.
    pub fn gccarchs(&self) -> impl Iterator<Item = &'static str> {
        let mut next = Some((self.adds, self.below));
        std::iter::from_fn(move || {
            let (adds, below) = next?;
            next = below.map(|below| (below.adds, below.below));
            Some(adds)
        })
        .flatten()
        .copied()
    }

    /// Whether builds tuned for all of these may go here. `exact` wants this very processor, for packages that look at
    /// the processor they are built on and so would come out differently on a superset.
    pub fn accepts<'a>(&self, gccarchs: impl IntoIterator<Item = &'a str>, exact: bool) -> bool {
        let mut is_own = false;
        for gccarch in gccarchs {
            if !self.runs(gccarch) {
                return false;
            }
            is_own |= self.own == Some(gccarch);
        }
        is_own || !exact
    }
}

/// What this feature is tuned for: `znver3` of `gccarch-znver3`; `None` for every other kind of feature.
pub fn gccarch(feature: &Feature) -> Option<&str> {
    feature.as_str().strip_prefix(PREFIX)
}

/// The feature of this `gccarch`.
pub fn feature(gccarch: &str) -> Feature {
    Feature::new(format!("{PREFIX}{gccarch}"))
}

/// The processor of this family.
pub fn processor_of(family: &str) -> Option<&'static Processor> {
    PROCESSORS.into_iter().find(|processor| processor.families.contains(&family))
}

/// The architecture of this `gccarch`.
pub fn architecture_of(gccarch: &str) -> Result<Architecture, GccarchError> {
    let found = PROCESSORS.into_iter().find(|processor| processor.runs(gccarch));
    let name = gccarch.to_owned();
    match found {
        Some(processor) => Ok(processor.architecture),
        None if NOT_ON_EC2.contains(&gccarch) => Err(GccarchError::NotOnEc2 { name }),
        None => Err(GccarchError::Unknown { name }),
    }
}

/// Families that accept this `gccarch`, whether or not this program knows their prices.
pub fn families(gccarch: &str, exact: bool) -> BTreeSet<&'static str> {
    PROCESSORS
        .into_iter()
        .filter(|processor| processor.accepts([gccarch], exact))
        .flat_map(|processor| processor.families)
        .copied()
        .collect()
}

/// Every `gccarch` that something on EC2 runs.
pub fn known() -> Vec<&'static str> {
    let known: BTreeSet<_> = PROCESSORS.into_iter().flat_map(Processor::gccarchs).collect();
    known.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Families by the generation that names them; `d`, `n` and the like go with them.
    const SKYLAKE_SP: &str = "c5 c5d c5n m5 m5d m5n m5dn r5 r5d r5n r5dn t3";
    const ICE_LAKE: &str = "c6i c6id c6in m6i m6id m6in m6idn r6i r6id r6in r6idn";
    const SAPPHIRE: &str = "c7i c7i-flex m7i m7i-flex r7i r7iz i7i i7ie";
    const GRANITE: &str = "c8i c8i-flex c8id m8i m8i-flex m8id r8i r8i-flex r8id x8i";
    const ZEN1: &str = "m5a m5ad r5a r5ad t3a";
    const ZEN2: &str = "c5a c5ad";
    const ZEN3: &str = "c6a m6a r6a hpc6a";
    const ZEN4: &str = "c7a m7a r7a hpc7a";
    const ZEN5: &str = "c8a m8a r8a m8azn";
    const A1: &str = "a1";
    const N1: &str = "c6g c6gd c6gn m6g m6gd r6g r6gd t4g";
    const V1: &str = "c7g c7gd c7gn m7g m7gd r7g r7gd";
    const V2: &str = "c8g c8gd c8gn m8g m8gd r8g r8gd x8g i8g";
    const V3: &str = "c9g c9gd m9g";

    const INTEL: &[&str] = &[SKYLAKE_SP, ICE_LAKE, SAPPHIRE, GRANITE];
    const AMD: &[&str] = &[ZEN1, ZEN2, ZEN3, ZEN4, ZEN5];

    #[track_caller]
    fn check(gccarch: &str, exact: bool, expected: &[&[&str]]) {
        let expected: BTreeSet<&str> =
            expected.iter().flat_map(|rows| rows.iter()).flat_map(|row| row.split(' ')).collect();
        assert_eq!(families(gccarch, exact), expected, "{gccarch}, exact: {exact}");
    }

    #[test]
    fn each_gccarch_goes_to_its_own_families_and_their_supersets() {
        for common in [
            "x86-64",
            "x86-64-v2",
            "x86-64-v3",
            "nehalem",
            "westmere",
            "sandybridge",
            "ivybridge",
            "haswell",
            "broadwell",
            "skylake",
        ] {
            check(common, false, &[INTEL, AMD]);
        }
        check("x86-64-v4", false, &[INTEL, &[ZEN4, ZEN5]]);
        check("skylake-avx512", false, &[INTEL]);
        for ice in ["icelake-server", "icelake-client", "cannonlake", "cascadelake"] {
            check(ice, false, &[&[ICE_LAKE, SAPPHIRE, GRANITE]]);
        }
        for sapphire in ["sapphirerapids", "emeraldrapids", "cooperlake"] {
            check(sapphire, false, &[&[SAPPHIRE, GRANITE]]);
        }
        check("graniterapids", false, &[&[GRANITE]]);
        check("znver1", false, &[AMD]);
        check("znver2", false, &[&AMD[1..]]);
        check("znver3", false, &[&AMD[2..]]);
        check("znver4", false, &[&AMD[3..]]);
        check("znver5", false, &[&AMD[4..]]);
        check("armv8-a", false, &[&[A1, N1, V1, V2, V3]]);
        check("cortex-a72", false, &[&[A1]]);
        check("cortex-a53", false, &[&[A1]]);
        for n1 in ["armv8.1-a", "armv8.2-a"] {
            check(n1, false, &[&[N1, V1, V2, V3]]);
        }
        for v1 in ["armv8.3-a", "armv8.4-a"] {
            check(v1, false, &[&[V1, V2, V3]]);
        }
        for v2 in ["armv8.5-a", "armv9-a"] {
            check(v2, false, &[&[V2, V3]]);
        }
        for v3 in ["armv8.6-a", "armv8.7-a", "armv9.1-a", "armv9.2-a"] {
            check(v3, false, &[&[V3]]);
        }
        assert_eq!(known().len(), 38, "{:?}", known());
    }

    #[test]
    fn an_exact_pool_takes_only_the_very_processor() {
        for (gccarch, own) in [
            ("znver1", ZEN1),
            ("znver2", ZEN2),
            ("znver3", ZEN3),
            ("znver4", ZEN4),
            ("znver5", ZEN5),
            ("icelake-server", ICE_LAKE),
            ("sapphirerapids", SAPPHIRE),
            ("graniterapids", GRANITE),
            ("cortex-a72", A1),
            ("armv8.2-a", N1),
            ("armv8.4-a", V1),
            ("armv9-a", V2),
            ("armv9.2-a", V3),
        ] {
            check(gccarch, true, &[&[own]]);
        }
        // No server of its own, a lottery, and levels that are no processor.
        for nowhere in ["skylake", "skylake-avx512", "cascadelake", "cannonlake", "x86-64-v3", "armv8-a"] {
            check(nowhere, true, &[]);
        }
    }

    #[test]
    fn the_mistakes_of_other_tables_are_not_repeated() {
        let runs = |family: &str, gccarch: &str| processor_of(family).unwrap().runs(gccarch);
        // avx512ifma and avx512vbmi are missing in Cascade Lake; c5 may be one.
        assert!(!runs("c5", "cannonlake") && !runs("c5", "cascadelake"));
        assert!(runs("c6i", "cascadelake"), "nixpkgs does not list it");
        assert!(!runs("c6i", "cooperlake"), "no avx512_bf16");
        assert!(runs("c7i", "cooperlake"), "nixpkgs does not list it");
        assert!(!runs("c7i", "tigerlake") && !runs("c7i", "alderlake"));
        assert!(!runs("c8i", "znver3"), "no clzero, no sse4a");
        assert!(!runs("c6a", "alderlake") && !runs("c7a", "skylake-avx512"));
    }

    #[test]
    fn a_name_that_fits_nothing_is_refused_with_what_would_fit() {
        assert_eq!(architecture_of("znver3"), Ok(Architecture::X86_64));
        assert_eq!(architecture_of("armv9-a"), Ok(Architecture::Arm64));
        let error = architecture_of("zen3").unwrap_err().to_string();
        assert!(
            error.starts_with("`gccarch-zen3` names no processor that is known here; known are armv8-a, ")
        );
        assert!(error.contains("znver3"));
        let error = architecture_of("tigerlake").unwrap_err().to_string();
        assert!(error.starts_with("no processor on EC2 runs code for `tigerlake`"), "{error}");
        assert!(NOT_ON_EC2.iter().all(|name| !known().contains(name)));
    }

    #[test]
    fn no_family_is_in_two_rows() {
        let all: Vec<_> = PROCESSORS.into_iter().flat_map(|processor| processor.families).collect();
        assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
    }

    #[test]
    fn all_of_several_have_to_run() {
        let milan = processor_of("c6a").unwrap();
        assert!(milan.accepts(["znver3", "skylake"], false));
        assert!(!milan.accepts(["znver3", "znver4"], false));
        assert!(milan.accepts(["znver2", "znver3"], true) && !milan.accepts(["znver2"], true));
        assert!(milan.accepts([], false) && !milan.accepts([], true));
    }
}
