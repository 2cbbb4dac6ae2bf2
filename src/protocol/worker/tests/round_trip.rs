//! Everything that can be said, at every version, arrives as it was said.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::model::{DrvPath, OutputName};
use crate::protocol::derivation::BasicDerivation;
use crate::protocol::testing::{any_basic_derivation, any_drv_path, any_output_name, any_store_path, run};
use crate::protocol::wire::{WireReader, WireWriter};
use crate::protocol::worker::log::{Field, read_frames, write_last};
use crate::protocol::worker::operation::*;

fn any_version() -> impl Strategy<Value = Version> {
    (Version::MIN.minor()..=Version::MAX.minor()).prop_map(Version::new)
}

fn any_paths() -> impl Strategy<Value = BTreeSet<StorePath>> {
    btree_set(any_store_path(), 0..6)
}

fn any_info() -> impl Strategy<Value = PathInfo> {
    let derivers = option::of(any_store_path());
    let numbers = (any::<u64>(), any::<u64>(), any::<bool>());
    let rest =
        (btree_set("[a-z0-9.-]{1,10}:[a-zA-Z0-9+/=]{1,20}", 0..3), option::of("fixed:[a-z0-9:]{1,20}"));
    (any_store_path(), derivers, any::<[u8; 32]>(), any_paths(), numbers, rest).prop_map(
        |(path, deriver, hash, references, (registration_time, nar_size, ultimate), (signatures, ca))| {
            PathInfo {
                path,
                deriver,
                nar_hash: Sha256Hash::from(hash),
                references,
                registration_time,
                nar_size,
                ultimate,
                signatures,
                ca,
            }
        },
    )
}

fn any_result() -> impl Strategy<Value = BuildResult> {
    let times = || option::of((0..u64::MAX).prop_map(Duration::from_micros));
    let numbers = (0_u64..20, any::<u64>(), any::<bool>(), any::<u64>(), any::<u64>());
    let outputs = btree_map("sha256:[0-9a-f]{64}![a-z]{1,5}", ".{0,40}", 0..3);
    (numbers, ".{0,40}", times(), times(), outputs).prop_map(
        |(
            (status, times_built, non_deterministic, start_time, stop_time),
            error,
            cpu_user,
            cpu_system,
            built_outputs,
        )| {
            BuildResult {
                status: ResultStatus::from_wire(status),
                error,
                times_built,
                non_deterministic,
                start_time,
                stop_time,
                cpu_user,
                cpu_system,
                built_outputs,
            }
        },
    )
}

/// What the version leaves out of it.
fn told(mut result: BuildResult, version: Version) -> BuildResult {
    if !version.has_cpu_times() {
        (result.cpu_user, result.cpu_system) = (None, None);
    }
    result
}

fn any_options() -> impl Strategy<Value = ClientOptions> {
    let seconds = || option::of((1_u64..1 << 40).prop_map(Duration::from_secs));
    let flags = any::<[bool; 5]>();
    (
        flags,
        any::<[u64; 3]>(),
        seconds(),
        seconds(),
        option::of(1_u64..),
        btree_map("[a-l-]{1,10}", ".{0,20}", 0..4),
    )
        .prop_map(|(flags, numbers, max_silent_time, timeout, max_log_size, extra)| ClientOptions {
            keep_failed: flags[0],
            keep_going: flags[1],
            fallback: flags[2],
            print_build_logs: flags[3],
            use_substitutes: flags[4],
            verbosity: numbers[0],
            max_jobs: numbers[1],
            cores: numbers[2],
            max_silent_time,
            timeout,
            max_log_size,
            extra,
        })
}

fn any_event() -> impl Strategy<Value = LogEvent> {
    let bytes = || vec(any::<u8>(), 0..20);
    let fields =
        || vec(prop_oneof![any::<u64>().prop_map(Field::Int), bytes().prop_map(Field::String)], 0..4);
    prop_oneof![
        (any::<u64>(), bytes()).prop_map(|(activity, text)| LogEvent::Line { activity, text }),
        (any::<u64>(), ".{0,9}").prop_map(|(activity, phase)| LogEvent::Phase { activity, phase }),
        bytes().prop_map(|text| LogEvent::Message { text }),
        (any::<[u64; 4]>(), bytes(), fields()).prop_map(|([id, level, kind, parent], text, fields)| {
            LogEvent::Start { id, level, kind, text, fields, parent }
        }),
        any::<u64>().prop_map(|id| LogEvent::Stop { id }),
        // A result that has an event of its own never comes as a plain one.
        (any::<u64>(), 105_u64..110, fields()).prop_map(|(id, kind, fields)| LogEvent::Result {
            id,
            kind,
            fields
        }),
        // And one whose fields are not those of its kind does not get that event.
        any::<u64>().prop_map(|id| LogEvent::Result { id, kind: 101, fields: vec![Field::Int(1)] }),
        any::<u64>().prop_map(|id| LogEvent::Result {
            id,
            kind: 104,
            fields: vec![Field::String(vec![0xff])]
        }),
    ]
}

/// Has our server read what our client writes.
fn as_read(operation: &impl Operation) -> Request {
    let mut out = WireWriter::new();
    operation.encode(&mut out);
    let mut reader = WireReader::new(out.as_bytes());
    let request = run(Request::read(&mut reader)).unwrap();
    assert!(reader.into_inner().is_empty());
    request
}

/// Has our client read what our server writes.
fn reply_of<O: Operation>(operation: &O, version: Version, write: impl FnOnce(&mut WireWriter)) -> O::Reply {
    let mut out = WireWriter::new();
    write(&mut out);
    let mut reader = WireReader::new(out.as_bytes());
    let reply = run(operation.read_reply(&mut reader, version)).unwrap();
    assert!(reader.into_inner().is_empty());
    reply
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn requests(
        path in any_store_path(),
        paths in any_paths(),
        drv in any_drv_path(),
        derivation in any_basic_derivation(),
        options in any_options(),
        targets in vec(".{0,20}", 0..3),
        id in "sha256:[0-9a-f]{64}!out",
    ) {
        prop_assert_eq!(as_read(&IsValidPath(&path)), Request::IsValidPath(path.clone()));
        prop_assert_eq!(as_read(&AddTempRoot(&path)), Request::AddTempRoot(path.clone()));
        prop_assert_eq!(as_read(&EnsurePath(&path)), Request::EnsurePath(path.clone()));
        prop_assert_eq!(as_read(&QueryPathInfo(&path)), Request::QueryPathInfo(path));
        prop_assert_eq!(as_read(&SetOptions(&options)), Request::SetOptions(Box::new(options)));
        prop_assert_eq!(as_read(&QueryMissing(&targets)), Request::QueryMissing(targets.clone()));
        prop_assert_eq!(as_read(&QueryRealisation(&id)), Request::QueryRealisation(id));
        prop_assert_eq!(
            as_read(&QueryDerivationOutputMap(&drv)),
            Request::QueryDerivationOutputMap(drv.clone())
        );
        for substitute in [Substitute::Yes, Substitute::No] {
            prop_assert_eq!(
                as_read(&QueryValidPaths { paths: &paths, substitute }),
                Request::QueryValidPaths { paths: paths.clone(), substitute }
            );
        }
        for mode in [BuildMode::Normal, BuildMode::Repair, BuildMode::Check] {
            prop_assert_eq!(as_read(&BuildDerivation { drv: &drv, derivation: &derivation, mode }), built(&drv, &derivation, mode));
            prop_assert_eq!(
                as_read(&BuildPaths { targets: &targets, mode }),
                Request::BuildPaths { targets: targets.clone(), mode }
            );
            prop_assert_eq!(
                as_read(&BuildPathsWithResults { targets: &targets, mode }),
                Request::BuildPathsWithResults { targets: targets.clone(), mode }
            );
        }
    }

    #[test]
    fn replies(
        version in any_version(),
        info in any_info(),
        paths in any_paths(),
        result in any_result(),
        outputs in btree_map(any_output_name(), option::of(any_store_path()), 0..4),
        sizes in any::<[u64; 2]>(),
        drv in any_drv_path(),
        derivation in any_basic_derivation(),
    ) {
        let asked = QueryPathInfo(&info.path);
        let reply = reply_of(&asked, version, |out| {
            out.bool(true);
            info.write_unkeyed(out);
        });
        prop_assert_eq!(reply.as_ref(), Some(&info));
        prop_assert_eq!(reply_of(&asked, version, |out| out.bool(false)), None);

        let asked = QueryValidPaths { paths: &paths, substitute: Substitute::No };
        prop_assert_eq!(&reply_of(&asked, version, |out| out.paths(&paths)), &paths);

        let asked = BuildDerivation { drv: &drv, derivation: &derivation, mode: BuildMode::Normal };
        let reply = reply_of(&asked, version, |out| result.write(out, version));
        prop_assert_eq!(reply, told(result, version));

        let missing = Missing {
            will_build: paths.clone(),
            will_substitute: paths.clone(),
            unknown: paths,
            download_size: sizes[0],
            nar_size: sizes[1],
        };
        prop_assert_eq!(reply_of(&QueryMissing(&[]), version, |out| missing.write(out)), missing);

        let reply = reply_of(&QueryDerivationOutputMap(&drv), version, |out| write_map(out, &outputs));
        prop_assert_eq!(reply, outputs);
    }

    #[test]
    fn log_frames(log in vec(any_event(), 0..8), failed in any::<bool>(), message in ".{0,30}", traces in vec(".{0,9}", 0..3)) {
        let error = RemoteError { level: 3, message, traces };
        let mut out = WireWriter::new();
        for event in &log {
            event.write(&mut out);
        }
        if failed { error.write(&mut out) } else { write_last(&mut out) }
        let mut reader = WireReader::new(out.as_bytes());
        let mut read = Vec::new();
        let end = run(read_frames(&mut reader, &mut read)).unwrap();
        prop_assert_eq!(end, if failed { Err(error) } else { Ok(()) });
        prop_assert_eq!(read, log);
        prop_assert!(reader.into_inner().is_empty());
    }

    #[test]
    fn noise_is_refused_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        run(Request::read(&mut WireReader::new(&bytes[..]))).ok();
        run(BuildResult::read(&mut WireReader::new(&bytes[..]), Version::MAX)).ok();
        run(PathInfo::read(&mut WireReader::new(&bytes[..]))).unwrap_err();
        prop_assert!(run(read_frames(&mut WireReader::new(&bytes[..]), &mut ())).is_err());
    }
}

fn built(drv: &DrvPath, derivation: &BasicDerivation, mode: BuildMode) -> Request {
    Request::BuildDerivation { drv: drv.clone(), derivation: Box::new(derivation.clone()), mode }
}

fn write_map(out: &mut WireWriter, outputs: &BTreeMap<OutputName, Option<StorePath>>) {
    out.u64(outputs.len() as u64);
    for (name, path) in outputs {
        out.bytes(name.as_str());
        out.optional_path(path.as_ref());
    }
}

#[test]
fn statuses_keep_their_numbers() {
    for number in (0..40).chain([u64::MAX]) {
        assert_eq!(ResultStatus::from_wire(number).to_wire(), number);
    }
    assert_eq!(ResultStatus::from_wire(3), ResultStatus::PermanentFailure);
    assert_eq!(ResultStatus::from_wire(8), ResultStatus::TimedOut);
    assert_eq!(ResultStatus::from_wire(14), ResultStatus::NoSubstituters);
    assert_eq!(ResultStatus::from_wire(15), ResultStatus::Other(15));
    let successes = (0..40).filter(|number| ResultStatus::from_wire(*number).is_success());
    assert_eq!(successes.collect::<Vec<_>>(), [0, 1, 2, 13]);
}

#[test]
fn times_and_limits_travel_as_settings() {
    let options = ClientOptions {
        timeout: Some(Duration::from_millis(1)),
        max_silent_time: Some(Duration::from_millis(1)),
        max_log_size: Some(5),
        ..ClientOptions::default()
    };
    let Request::SetOptions(read) = as_read(&SetOptions(&options)) else { panic!() };
    // Less than a second is not "none", which is what 0 means to Nix.
    assert_eq!(read.timeout, Some(Duration::from_secs(1)));
    assert_eq!(read.max_silent_time, Some(Duration::from_secs(1)));
    assert_eq!(read.max_log_size, Some(5));
    assert!(read.extra.is_empty());

    let odd = ClientOptions { extra: BTreeMap::from([("timeout".into(), "soon".into())]), ..options };
    let odd = ClientOptions { timeout: None, ..odd };
    let Request::SetOptions(read) = as_read(&SetOptions(&odd)) else { panic!() };
    assert_eq!((read.timeout, read.extra), (None, odd.extra));
}

#[test]
fn where_outputs_are_is_found_in_realisations() {
    let mut result = BuildResult::new(ResultStatus::Built, "");
    let path = path(1);
    let json = |path: &str| {
        format!(r#"{{"dependentRealisations":{{}},"id":"x!dev","outPath":"{path}","signatures":[]}}"#)
    };
    result.built_outputs.insert("sha256:ab!dev".into(), json(path.base_name()));
    let dev = OutputName::parse("dev").unwrap();
    assert_eq!(result.output_paths().unwrap(), BTreeMap::from([(dev, path)]));
    for (id, realisation) in [
        ("sha256:ab", json("00000000000000000000000000000000-x")),
        ("sha256:ab!a/b", json("00000000000000000000000000000000-x")),
        ("sha256:ab!dev", json("/etc/passwd")),
        ("sha256:ab!dev", "{}".into()),
        ("sha256:ab!dev", "not json".into()),
        ("sha256:ab!dev", "[".repeat(100_000)),
    ] {
        result.built_outputs = BTreeMap::from([(id.to_owned(), realisation)]);
        assert!(result.output_paths().is_err(), "{id}");
    }
}

#[test]
fn counts_and_lengths_are_bounded_before_anything_is_kept() {
    let hostile = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    for values in [
        // Far too many paths; a path that is far too long; both at their bound, with nothing behind.
        &[31, u64::MAX][..],
        &[31, 1, u64::MAX],
        &[31, 1 << 20, 1 << 16],
        // Environment variables without end, and an argument without end.
        &[46, u64::MAX],
        &[40, 1, 1 << 40],
    ] {
        let bytes = hostile(values);
        run(Request::read(&mut WireReader::new(&bytes[..]))).unwrap_err();
    }
    // Strings that are each within their bound may not add up to more than a message's.
    let mut out = WireWriter::new();
    out.u64(40);
    out.u64(4000);
    for _ in 0..4000 {
        out.bytes(vec![b'x'; 60 << 10]);
    }
    let error = run(Request::read(&mut WireReader::new(out.as_bytes()))).unwrap_err();
    assert!(matches!(error, crate::protocol::wire::WireError::TooLong { .. }), "{error:?}");
}
