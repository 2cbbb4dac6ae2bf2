//! Derivations in files, good ones and odd ones, and who waits for them.

use std::collections::BTreeSet;

use futures_util::FutureExt;

use super::walk::testing::drv;
use super::*;
use crate::model::{Feature, Requirement, System};

/// A store of its own.
struct Store {
    dir: tempfile::TempDir,
    lineages: Lineages,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lineages = Lineages::of(dir.path());
        Self { dir, lineages }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(drv(name).as_store_path().base_name())
    }

    /// A derivation in the form of a real file.
    fn add(&self, name: &str, features: &str, inputs: &[String]) {
        let mut inputs: Vec<_> =
            inputs.iter().map(|input| format!("(\"{}\",[\"out\"])", drv(input))).collect();
        inputs.sort();
        let out = format!("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-{name}");
        let file = format!(
            "Derive([(\"out\",\"{out}\",\"\",\"\")],[{}],[],\"x86_64-linux\",\"/bin/sh\",[],[(\"out\",\"{out}\"),(\"requiredSystemFeatures\",\"{features}\")])",
            inputs.join(",")
        );
        std::fs::write(self.path(name), file).unwrap();
    }

    /// `length` derivations on top of each other, the lowest of which is tuned.
    fn add_chain(&self, length: usize) {
        self.add("link-0", "kvm gccarch-znver3", &[]);
        for n in 1..length {
            self.add(&format!("link-{n}"), "", &[format!("link-{}", n - 1)]);
        }
    }

    async fn ask(&self, name: &str, patience: Patience) -> Result<Requirement, StillReading> {
        self.ask_with(name, None, patience).await
    }

    async fn ask_with(
        &self,
        name: &str,
        brought: Option<&str>,
        patience: Patience,
    ) -> Result<Requirement, StillReading> {
        let requirement = Requirement::new(System::new("x86_64-linux"), BTreeSet::new());
        let mut request = BuildRequest::new(drv(name), requirement);
        self.lineages.complete(&mut request, brought, patience).await?;
        Ok(request.requirement)
    }
}

fn znver3() -> BTreeSet<Feature> {
    [Feature::new("gccarch-znver3")].into()
}

#[tokio::test]
async fn a_requirement_is_completed_from_the_files() {
    let store = Store::new();
    store.add_chain(3);
    for patience in [Patience::Moment, Patience::UntilKnown] {
        let requirement = store.ask("link-2", patience).await.unwrap();
        assert_eq!(requirement.features, znver3());
        assert_eq!(requirement.inherited.0[&Feature::new("gccarch-znver3")], drv("link-0"));
    }
    // From memory alone.
    std::fs::remove_file(store.path("link-2")).unwrap();
    assert_eq!(store.ask("link-2", Patience::Moment).await.unwrap().features, znver3());
}

#[tokio::test]
async fn a_file_that_is_brought_is_not_read() {
    let store = Store::new();
    store.add_chain(3);
    let file = std::fs::read_to_string(store.path("link-2")).unwrap();
    store.ask("link-1", Patience::Moment).await.unwrap();
    // Nobody can be waited for: the answer comes from memory, or from nowhere.
    std::fs::remove_file(store.path("link-2")).unwrap();
    let _all_walks = store.lineages.walks.try_acquire_many(u32::try_from(MAX_WALKS).unwrap()).unwrap();
    let requirement =
        store.ask_with("link-2", Some(&file), Patience::Moment).now_or_never().expect("it waits").unwrap();
    assert_eq!(requirement.features, znver3());
}

#[tokio::test]
async fn what_lies_below_a_file_that_is_brought_is_read_and_so_is_one_that_came_spoilt() {
    let store = Store::new();
    store.add_chain(3);
    let file = std::fs::read_to_string(store.path("link-2")).unwrap();
    assert_eq!(
        store.ask_with("link-1", Some(&file[..100]), Patience::Moment).await.unwrap().features,
        znver3()
    );
    let store = Store::new();
    store.add_chain(3);
    std::fs::remove_file(store.path("link-2")).unwrap();
    assert_eq!(store.ask_with("link-2", Some(&file), Patience::Moment).await.unwrap().features, znver3());
}

#[tokio::test]
async fn who_names_a_processor_costs_no_reading() {
    let store = Store::new();
    store.add("user", "", &["gcc".to_owned()]);
    store.add("gcc", "gccarch-znver3", &[]);
    let own: BTreeSet<_> = [Feature::new("gccarch-skylake")].into();
    let requirement = Requirement::new(System::new("x86_64-linux"), own);
    let mut request = BuildRequest::new(drv("user"), requirement.clone());
    store.lineages.complete(&mut request, None, Patience::Moment).await.unwrap();
    assert_eq!(request.requirement, requirement);
    assert_eq!(store.lineages.memo.lock().len(), 0);
    // Unless there is a choice of where to build it, for which its own file is read.
    request.am_willing = true;
    request.settings.can_locally = true;
    store.lineages.complete(&mut request, None, Patience::Moment).await.unwrap();
    assert_eq!(request.requirement, requirement);
}

#[tokio::test]
async fn what_is_no_derivation_inherits_nothing() {
    let store = Store::new();
    store.add("gcc", "gccarch-znver3", &[]);
    let odd = ["missing", "link", "directory", "pipe", "broken", "huge"];
    std::os::unix::fs::symlink(store.path("gcc"), store.path("link")).unwrap();
    std::fs::create_dir(store.path("directory")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(store.path("pipe")).status().unwrap();
    assert!(made.success());
    std::fs::write(store.path("broken"), "Derive([").unwrap();
    std::fs::File::create(store.path("huge")).unwrap().set_len(MAX_FILE + 1).unwrap();
    for name in odd {
        let requirement = store.ask(name, Patience::UntilKnown).await.unwrap();
        assert!(requirement.features.is_empty(), "{name}: {requirement}");
    }
    // And does not spoil what it is an input of.
    let inputs: Vec<_> = odd.iter().chain(&["gcc"]).map(|&name| name.to_owned()).collect();
    store.add("top", "", &inputs);
    assert_eq!(store.ask("top", Patience::UntilKnown).await.unwrap().features, znver3());
}

#[tokio::test]
async fn what_takes_longer_than_a_moment_is_postponed_while_another_long_walk_goes_on() {
    let store = Store::new();
    let length = MOMENT.files * 3;
    store.add_chain(length);
    let top = format!("link-{}", length - 1);
    let other_walk = store.lineages.long_walk.try_acquire().unwrap();
    assert_eq!(store.ask(&top, Patience::Moment).await, Err(StillReading));
    drop(other_walk);
    // Nix asks again until it is known; nothing else drives the reading.
    let give_up = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match store.ask(&top, Patience::Moment).await {
            Ok(requirement) => break assert_eq!(requirement.features, znver3()),
            Err(StillReading) => assert!(tokio::time::Instant::now() < give_up, "never read to the end"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_accepted_build_waits_until_all_is_known() {
    let store = Store::new();
    let length = MOMENT.files * 3;
    store.add_chain(length);
    let top = format!("link-{}", length - 1);
    let asks: Vec<_> = (0..8).map(|_| store.ask(&top, Patience::UntilKnown)).collect();
    for requirement in futures_util::future::join_all(asks).await {
        assert_eq!(requirement.unwrap().features, znver3());
    }
}

#[test]
fn a_walk_ends_with_the_broker() {
    let store = Store::new();
    store.add_chain(2);
    let memo = Arc::downgrade(&store.lineages.memo);
    let files = StoreFiles { dir: store.dir.path().to_owned() };
    let reader = Reader { walk: Walk::to(drv("link-1")), memo, files };
    drop(store.lineages);
    assert_eq!(reader.finish(), Lineage::default());
}
