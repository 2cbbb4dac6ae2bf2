//! What Nix's bytes cost: words of the worker protocol, derivations, and archives.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "the macros write the functions; a bench that cannot go on panics"
)]

use std::collections::BTreeSet;
use std::fs;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nix_broker::model::StorePath;
use nix_broker::protocol::derivation::Derivation;
use nix_broker::protocol::nar::{self, write_tree};
use nix_broker::protocol::wire::{WireReader, WireWriter};

const PATHS: u32 = 2_000;
const MIB: usize = 64;

fn paths() -> BTreeSet<StorePath> {
    let digits = b"0123456789abcdfghijklmnpqrsvwxyz";
    let hash = |number: u32| -> String {
        (0..32)
            .map(|i| char::from(digits[(number.wrapping_mul(2_654_435_761) >> (i % 27)) as usize % 32]))
            .collect()
    };
    (0..PATHS).map(|n| StorePath::from_base_name(&format!("{}-input-{n}", hash(n))).unwrap()).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn codecs(criterion: &mut Criterion) {
    let (paths, runtime) = (paths(), runtime());
    let mut group = criterion.benchmark_group("worker protocol");
    group.throughput(Throughput::Elements(u64::from(PATHS)));
    let encode = || {
        let mut out = WireWriter::new();
        out.paths(&paths);
        out.into_bytes()
    };
    group.bench_function("write store paths", |bencher| bencher.iter(encode));
    let bytes = encode();
    group.bench_function("read store paths", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async { WireReader::new(&bytes[..]).store_paths("paths").await.unwrap() })
        });
    });
    let list =
        |quote: &str| paths.iter().map(|path| format!("{quote}{path}{quote}")).collect::<Vec<_>>().join(",");
    let drv = format!(
        "Derive([(\"out\",\"/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-out\",\"\",\"\")],[],[{}],\"x86_64-linux\",\
         \"/bin/sh\",[\"-c\",\"true\"],[(\"name\",\"x\"),(\"out\",\"/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-out\")])",
        list("\"")
    );
    group.throughput(Throughput::Bytes(drv.len() as u64));
    group.bench_function("parse a derivation", |bencher| {
        bencher.iter(|| Derivation::parse(drv.as_bytes()).unwrap());
    });
    group.finish();
}

fn archives(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let (large, many) = (dir.path().join("large"), dir.path().join("many"));
    fs::write(&large, (0..MIB << 20).map(|i| (i >> 3) as u8).collect::<Vec<_>>()).unwrap();
    fs::create_dir(&many).unwrap();
    for i in 0..2_000 {
        fs::write(many.join(format!("file-{i}")), format!("content {i}")).unwrap();
    }
    let runtime = runtime();
    let mut group = criterion.benchmark_group("archive");
    group.sample_size(10);
    for (name, tree) in [("one large file", &large), ("2,000 small files", &many)] {
        let mut archive = Vec::new();
        write_tree(tree, &mut archive).unwrap();
        group.throughput(Throughput::Bytes(archive.len() as u64));
        group.bench_function(format!("write {name}"), |bencher| {
            bencher.iter(|| write_tree(tree, &mut std::io::sink()).unwrap());
        });
        group.bench_function(format!("check and copy {name}"), |bencher| {
            bencher.iter(|| {
                runtime
                    .block_on(async { nar::copy(&mut &archive[..], &mut tokio::io::sink()).await.unwrap() })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, codecs, archives);
criterion_main!(benches);
