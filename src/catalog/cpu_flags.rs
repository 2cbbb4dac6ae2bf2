//! How to see on a machine that its processor runs the code it was chosen for: the flags of `/proc/cpuinfo`.
//!
//! A list has what a compiler may emit by itself for that `-march=`, in the words of the kernel (`abm` is GCC's `lzcnt`,
//! `pni` is SSE3). Left out is what EC2 hides from guests and no compiler emits unasked (`pku`, `mwaitx`, `sgx`, AMX), what
//! only kernels use (`xsaves`, which Linux takes away on Zen 1 and 2 and EC2 hides on Zen 3) and hints (`hle`, BTI).

use std::collections::BTreeSet;

use super::microarch;
use crate::model::Feature;

/// `gccarch`, those whose flags it needs as well, and its own flags.
type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

const ROWS: &[Row] = &[
    ("x86-64", &[], &["lm", "cmov", "cx8", "fpu", "fxsr", "mmx", "sse", "sse2"]),
    ("x86-64-v2", &["x86-64"], &["cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"]),
    ("x86-64-v3", &["x86-64-v2"], &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]),
    ("x86-64-v4", &["x86-64-v3"], &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]),
    // Intel.
    ("nehalem", &["x86-64-v2"], &[]),
    ("westmere", &["nehalem"], &["aes", "pclmulqdq"]),
    ("sandybridge", &["westmere"], &["avx", "xsave", "xsaveopt"]),
    ("ivybridge", &["sandybridge"], &["f16c", "fsgsbase", "rdrand"]),
    ("haswell", &["ivybridge", "x86-64-v3"], &[]),
    ("broadwell", &["haswell"], &["3dnowprefetch", "adx", "rdseed"]),
    ("skylake", &["broadwell"], &["clflushopt", "xsavec"]),
    ("skylake-avx512", &["skylake", "x86-64-v4"], &["clwb"]),
    ("cascadelake", &["skylake-avx512"], &["avx512_vnni"]),
    ("cooperlake", &["cascadelake"], &["avx512_bf16"]),
    ("cannonlake", &["skylake", "x86-64-v4"], &["avx512ifma", "avx512vbmi", "sha_ni"]),
    (
        "icelake-client",
        &["cannonlake"],
        &[
            "avx512_bitalg",
            "avx512_vbmi2",
            "avx512_vnni",
            "avx512_vpopcntdq",
            "gfni",
            "rdpid",
            "vaes",
            "vpclmulqdq",
        ],
    ),
    ("icelake-server", &["icelake-client"], &["clwb"]),
    ("sapphirerapids", &["icelake-server"], &["avx512_bf16", "avx512_fp16", "avx_vnni"]),
    ("emeraldrapids", &["sapphirerapids"], &[]),
    ("graniterapids", &["sapphirerapids"], &[]),
    // AMD.
    (
        "znver1",
        &["x86-64-v3"],
        &[
            "3dnowprefetch",
            "adx",
            "aes",
            "clflushopt",
            "clzero",
            "fsgsbase",
            "pclmulqdq",
            "rdrand",
            "rdseed",
            "sha_ni",
            "sse4a",
            "xsavec",
            "xsaveopt",
        ],
    ),
    ("znver2", &["znver1"], &["clwb", "rdpid"]),
    ("znver3", &["znver2"], &["vaes", "vpclmulqdq"]),
    (
        "znver4",
        &["znver3", "x86-64-v4"],
        &[
            "avx512_bf16",
            "avx512_bitalg",
            "avx512_vbmi2",
            "avx512_vnni",
            "avx512_vpopcntdq",
            "avx512ifma",
            "avx512vbmi",
            "gfni",
        ],
    ),
    ("znver5", &["znver4"], &["avx_vnni"]),
    // Arm. Armv9.0 is Armv8.5 with SVE2, 9.1 is 8.6 and 9.2 is 8.7, which adds only system instructions.
    ("armv8-a", &[], &["asimd", "fp"]),
    ("cortex-a53", &["armv8-a"], &["crc32"]),
    ("cortex-a72", &["armv8-a"], &["crc32"]),
    ("armv8.1-a", &["armv8-a"], &["asimdrdm", "atomics", "crc32"]),
    ("armv8.2-a", &["armv8.1-a"], &["dcpop"]),
    ("armv8.3-a", &["armv8.2-a"], &["fcma", "jscvt", "lrcpc", "paca", "pacg"]),
    ("armv8.4-a", &["armv8.3-a"], &["asimddp", "dit", "flagm", "ilrcpc", "uscat"]),
    ("armv8.5-a", &["armv8.4-a"], &["dcpodp", "flagm2", "frint", "sb"]),
    ("armv8.6-a", &["armv8.5-a"], &["bf16", "i8mm"]),
    ("armv8.7-a", &["armv8.6-a"], &[]),
    ("armv9-a", &["armv8.5-a"], &["sve", "sve2"]),
    ("armv9.1-a", &["armv9-a", "armv8.6-a"], &[]),
    ("armv9.2-a", &["armv9.1-a", "armv8.7-a"], &[]),
];

/// The flags that `/proc/cpuinfo` (`flags`, on Arm `Features`) must have for this feature and has not. Nothing for a
/// feature that is not about the processor, and for a name that [`microarch::architecture_of`] does not know.
pub fn missing_flags(feature: &Feature, flags: &BTreeSet<&str>) -> Vec<&'static str> {
    let required = microarch::gccarch(feature).map(required_flags).unwrap_or_default();
    required.into_iter().filter(|flag| !flags.contains(flag)).collect()
}

fn required_flags(gccarch: &str) -> BTreeSet<&'static str> {
    let mut required = BTreeSet::new();
    let mut wanted = vec![gccarch];
    while let Some(name) = wanted.pop() {
        for (_, includes, own) in ROWS.iter().filter(|(row, ..)| *row == name) {
            wanted.extend(*includes);
            required.extend(*own);
        }
    }
    required
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::microarch::{PROCESSORS, feature, processor_of};

    /// `/proc/cpuinfo` of real instances, as people published it.
    const C6A: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse \
        sse2 ht syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm constant_tsc rep_good nopl nonstop_tsc cpuid extd_apicid \
        aperfmperf tsc_known_freq pni pclmulqdq ssse3 fma cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c \
        rdrand hypervisor lahf_lm cmp_legacy cr8_legacy abm sse4a misalignsse 3dnowprefetch topoext ssbd ibrs ibpb stibp \
        vmmcall fsgsbase bmi1 avx2 smep bmi2 invpcid rdseed adx smap clflushopt clwb sha_ni xsaveopt xsavec xgetbv1 \
        clzero xsaveerptr rdpru wbnoinvd arat npt nrip_save vaes vpclmulqdq rdpid";
    const C5A: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse \
        sse2 ht syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm constant_tsc rep_good nopl nonstop_tsc cpuid extd_apicid \
        aperfmperf tsc_known_freq pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand \
        hypervisor lahf_lm cmp_legacy cr8_legacy abm sse4a misalignsse 3dnowprefetch topoext ssbd ibrs ibpb stibp vmmcall \
        fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap clflushopt clwb sha_ni xsaveopt xsavec xgetbv1 clzero xsaveerptr \
        rdpru wbnoinvd arat npt nrip_save rdpid";
    const C7A: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse \
        sse2 ht syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm constant_tsc rep_good nopl nonstop_tsc cpuid extd_apicid \
        aperfmperf tsc_known_freq pni pclmulqdq monitor ssse3 fma cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt aes xsave \
        avx f16c rdrand hypervisor lahf_lm cmp_legacy cr8_legacy abm sse4a misalignsse 3dnowprefetch topoext perfctr_core \
        invpcid_single ssbd perfmon_v2 ibrs ibpb stibp ibrs_enhanced vmmcall fsgsbase bmi1 avx2 smep bmi2 invpcid avx512f \
        avx512dq rdseed adx smap avx512ifma clflushopt clwb avx512cd sha_ni avx512bw avx512vl xsaveopt xsavec xgetbv1 \
        xsaves avx512_bf16 clzero xsaveerptr rdpru wbnoinvd arat avx512vbmi pku ospke avx512_vbmi2 gfni vaes vpclmulqdq \
        avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid flush_l1d";
    const C7I: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse \
        sse2 ss ht syscall nx pdpe1gb rdtscp lm constant_tsc rep_good nopl xtopology nonstop_tsc cpuid tsc_known_freq pni \
        pclmulqdq ssse3 fma cx16 pdcm pcid sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave avx f16c rdrand \
        hypervisor lahf_lm abm 3dnowprefetch cpuid_fault invpcid_single ssbd ibrs ibpb stibp ibrs_enhanced fsgsbase \
        tsc_adjust bmi1 avx2 smep bmi2 erms invpcid avx512f avx512dq rdseed adx smap avx512ifma clflushopt clwb avx512cd \
        sha_ni avx512bw avx512vl xsaveopt xsavec xgetbv1 xsaves avx_vnni avx512_bf16 wbnoinvd ida arat avx512vbmi umip \
        pku ospke waitpkg avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq rdpid cldemote \
        movdiri movdir64b md_clear serialize amx_bf16 avx512_fp16 amx_tile amx_int8 flush_l1d arch_capabilities";
    const C6G: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop \
        asimddp ssbs";
    const C7G: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc \
        dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm paca pacg dcpodp svei8mm svebf16 i8mm bf16 \
        dgh rng";
    const C8G: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc \
        dcpop sha3 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm sb paca pacg dcpodp sve2 sveaes svepmull \
        svebitperm svesha3 flagm2 frint svei8mm svebf16 i8mm bf16 dgh rng bti";

    fn missing(gccarch: &str, flags: &str) -> Vec<&'static str> {
        missing_flags(&feature(gccarch), &flags.split_whitespace().collect())
    }

    #[test]
    fn a_real_machine_has_the_flags_of_everything_its_family_offers() {
        for (family, flags) in
            [("c5a", C5A), ("c6a", C6A), ("c7a", C7A), ("c7i", C7I), ("c6g", C6G), ("c7g", C7G), ("c8g", C8G)]
        {
            for gccarch in processor_of(family).unwrap().gccarchs() {
                assert_eq!(missing(gccarch, flags), [""; 0], "{gccarch} on {family}");
            }
        }
    }

    #[test]
    fn another_machine_is_found_out() {
        assert_eq!(missing("znver3", C5A), ["vaes", "vpclmulqdq"]);
        assert_eq!(missing("znver3", C7I), ["clzero", "sse4a"]);
        assert_eq!(missing("znver5", C7A), ["avx_vnni"]);
        assert_eq!(missing("x86-64-v4", C6A), ["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"]);
        assert_eq!(missing("sapphirerapids", C7A), ["avx512_fp16", "avx_vnni"]);
        assert_eq!(missing("armv8.4-a", C6G).len(), 8);
        assert_eq!(missing("armv9-a", C7G), ["flagm2", "frint", "sb", "sve2"]);
        assert!(missing("skylake", C6G).contains(&"avx2"));
    }

    #[test]
    fn what_ec2_hides_and_no_compiler_emits_is_not_asked_for() {
        for hidden in ["pku", "ospke", "mwaitx", "sgx", "hle", "xsaves", "amx_tile", "wbnoinvd", "ssbs"] {
            assert!(ROWS.iter().all(|(row, ..)| !required_flags(row).contains(hidden)), "{hidden}");
        }
        let znver3 = required_flags("znver3");
        assert!(
            ["avx2", "bmi2", "sha_ni", "vaes", "vpclmulqdq", "clzero"]
                .iter()
                .all(|flag| znver3.contains(flag))
        );
    }

    #[test]
    fn a_superset_needs_every_flag_of_what_it_runs() {
        for processor in PROCESSORS {
            let Some(own) = processor.own else { continue };
            for gccarch in processor.gccarchs() {
                let beyond: Vec<_> =
                    required_flags(gccarch).difference(&required_flags(own)).copied().collect();
                assert_eq!(beyond, [""; 0], "{gccarch} on {}", processor.name);
            }
        }
    }

    #[test]
    fn every_known_gccarch_has_a_row_and_other_features_need_nothing() {
        for known in microarch::known() {
            assert_eq!(ROWS.iter().filter(|(row, ..)| *row == known).count(), 1, "{known}");
        }
        assert_eq!(ROWS.len(), microarch::known().len());
        assert_eq!(missing_flags(&Feature::new("kvm"), &BTreeSet::new()), [""; 0]);
    }
}
