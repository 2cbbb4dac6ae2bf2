//! Images: what is written and registered, what is left when something goes wrong (nothing), who may have them, and
//! which of them go.

use std::fs;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use nix_broker::provider::ec2::api::{Api, BootMode, ErrorClass, SnapshotOrder};
use nix_broker::provider::ec2::image::{
    self, DiskFile, ImageError, Progress, Sharing, UploadOrder, Uploaded, name_of,
};
use tempfile::TempDir;
use tokio::time::sleep;

use super::{REGION, order, simulated, strings};
use crate::disk::{self, BLOCK, EFI_SYSTEM};
use crate::fake_ec2::{FakeEc2, Fault, Refusal};

/// A file with a disk, as somebody uploads it.
struct Image {
    _dir: TempDir,
    file: Arc<DiskFile>,
}

/// Two blocks of zeros, one with little in it, and a last one that is not whole.
fn image(mark: u8) -> Image {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let size = 4 * BLOCK as u64 + 1024;
    disk::write(&path, size, EFI_SYSTEM, &[(2 * BLOCK as u64 + 77, &[mark]), (size - 1, &[9])]);
    Image { file: Arc::new(DiskFile::open(&path).unwrap()), _dir: dir }
}

async fn upload(api: &Api, image: &Image, stop: impl Future<Output = ()>) -> Result<Uploaded, ImageError> {
    upload_told(api, image, stop, &mut |_| ()).await
}

async fn upload_told(
    api: &Api,
    image: &Image,
    stop: impl Future<Output = ()>,
    tell: &mut dyn FnMut(Progress),
) -> Result<Uploaded, ImageError> {
    let plan = image.file.plan().unwrap();
    let order = UploadOrder {
        name: name_of("26.05.1 <x>", "x86_64-linux", &plan),
        arch: "x86_64".into(),
        boot_mode: BootMode::Uefi,
        label: Some("26.05.1".into()),
    };
    image::upload(api, &image.file, &plan, &order, stop, tell).await
}

/// Nothing is there that would cost.
fn nothing_is_left(fake: &FakeEc2) {
    assert!(fake.own_images().is_empty(), "{:?}", fake.own_images());
    let ids: Vec<String> = fake.snapshots().into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(ids, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_image_has_exactly_the_blocks_of_its_disk_and_says_what_it_is() {
    let (fake, api) = simulated();
    let image = image(7);
    let mut told = Vec::new();
    let uploaded = upload_told(&api, &image, pending(), &mut |progress| told.push(progress)).await.unwrap();
    assert!(uploaded.name.starts_with("nix-broker/26.05.1 -x--x86_64-linux-"), "{}", uploaded.name);

    let snapshot = fake.snapshots().remove(0);
    let disk = fs::read(image.file.path()).unwrap();
    assert_eq!(snapshot.blocks.keys().copied().collect::<Vec<_>>(), [0, 2, 4], "no zeros");
    for (index, block) in &snapshot.blocks {
        let start = *index as usize * BLOCK;
        let mut expected = disk[start..disk.len().min(start + BLOCK)].to_vec();
        expected.resize(BLOCK, 0);
        assert!(*block == expected, "block {index}");
    }
    assert_eq!(snapshot.size, 1);

    let made = fake.own_images().remove(0);
    assert_eq!((&made.id, &made.snapshot, made.size), (&uploaded.id, &snapshot.id, 1));
    for tags in [&made.tags, &snapshot.tags] {
        for (key, value) in [
            ("ManagedBy", "nix-broker"),
            ("nix-broker:image", "1"),
            ("nix-broker:version", env!("CARGO_PKG_VERSION")),
            ("nix-broker:label", "26.05.1"),
            ("nix-broker:bytes", "1572864"),
            ("Name", uploaded.name.as_str()),
        ] {
            assert_eq!(tags[key], value);
        }
        assert_eq!(tags["nix-broker:content"].len(), 64);
    }
    for (name, value) in [
        ("Architecture", "x86_64"),
        ("BootMode", "uefi"),
        ("VirtualizationType", "hvm"),
        ("EnaSupport", "true"),
        ("ImdsSupport", "v2.0"),
        ("RootDeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.VolumeType", "gp3"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
    ] {
        assert_eq!(made.request.get(name), Some(value), "{name}");
    }
    assert_eq!(told[0], Progress::Started { snapshot: snapshot.id });
    assert_eq!(told[1], Progress::Written { done: 0, of: 3 });
    assert_eq!(
        told[4..],
        [Progress::Written { done: 3, of: 3 }, Progress::Sealed, Progress::Registered { image: uploaded.id }]
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_disk_is_not_uploaded_twice_and_a_name_is_not_taken_twice() {
    let (fake, api) = simulated();
    let first = upload(&api, &image(1), pending()).await.unwrap();
    let again = upload(&api, &image(1), pending()).await.unwrap();
    assert_eq!((&again.id, again.is_old), (&first.id, true));
    assert_eq!(fake.seen_of("StartSnapshot").len(), 1);

    let other = image(2);
    let plan = other.file.plan().unwrap();
    let order = UploadOrder {
        name: first.name.clone(),
        arch: "x86_64".into(),
        boot_mode: BootMode::Uefi,
        label: None,
    };
    let taken = image::upload(&api, &other.file, &plan, &order, pending(), &mut |_| ()).await.unwrap_err();
    assert!(taken.to_string().contains("give another `--name`"), "{taken}");
    assert_eq!(fake.snapshots().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_fails_at_any_step_leaves_nothing() {
    let wrong = || Fault::Refuse(Refusal::new(400, "ValidationException", "no"));
    for action in ["StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot", "RegisterImage"] {
        let (fake, api) = simulated();
        // The dry run of the permission is one request of its own.
        let skip = u32::from(action == "RegisterImage");
        fake.faults(|faults| faults.plan_after(action, skip, 1, wrong()));
        let error = upload(&api, &image(1), pending()).await.unwrap_err();
        assert!(error.to_string().contains(action), "{action}: {error}");
        nothing_is_left(&fake);
    }
    // Nobody ever hears an answer.
    for action in ["StartSnapshot", "PutSnapshotBlock", "RegisterImage"] {
        let (fake, api) = simulated();
        fake.faults(|faults| faults.plan(action, 1000, Fault::LostBefore));
        upload(&api, &image(1), pending()).await.unwrap_err();
        nothing_is_left(&fake);
    }
    let (fake, api) = simulated();
    fake.faults(|faults| faults.plan("StartSnapshot", 1000, Fault::LostAfter));
    upload(&api, &image(1), pending()).await.unwrap_err();
    nothing_is_left(&fake);
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_waited_for() {
    let cases: [fn(&FakeEc2); 8] = [
        |fake| fake.settings(|settings| settings.hidden = Duration::from_secs(90)),
        |fake| fake.faults(|faults| faults.throttle("PutSnapshotBlock", 1.0, 1.0)),
        |fake| fake.faults(|faults| faults.plan("PutSnapshotBlock", 4, Fault::internal())),
        |fake| fake.faults(|faults| faults.plan("PutSnapshotBlock", 2, Fault::LostAfter)),
        |fake| fake.faults(|faults| faults.plan("StartSnapshot", 2, Fault::LostAfter)),
        |fake| fake.faults(|faults| faults.plan("CompleteSnapshot", 1, Fault::LostAfter)),
        |fake| fake.faults(|faults| faults.plan_after("RegisterImage", 1, 1, Fault::LostAfter)),
        |fake| fake.faults(|faults| faults.plan_after("RegisterImage", 1, 1, Fault::internal_after())),
    ];
    for (number, prepare) in cases.into_iter().enumerate() {
        let (fake, api) = simulated();
        prepare(&fake);
        let uploaded =
            upload(&api, &image(1), pending()).await.unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(fake.own_images().len(), 1, "{number}");
        assert_eq!(fake.own_images()[0].id, uploaded.id, "{number}");
        assert_eq!(fake.snapshots().len(), 1, "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_it_is_known_that_it_can_be_used_and_deleted() {
    let (fake, api) = simulated();
    fake.faults(|faults| faults.deny("RegisterImage"));
    let error = upload(&api, &image(1), pending()).await.unwrap_err().to_string();
    assert!(error.contains("`ec2:RegisterImage`"), "{error}");
    assert!(fake.seen_of("PutSnapshotBlock").is_empty());
    nothing_is_left(&fake);

    let (fake, api) = simulated();
    fake.faults(|faults| faults.deny("DeleteSnapshot"));
    let error = upload(&api, &image(1), pending()).await.unwrap_err().to_string();
    let left = fake.snapshots().remove(0).id;
    assert!(error.contains(&format!("`{left}` is left behind")), "{error}");
    assert!(error.contains(&format!("delete-snapshot --region {REGION} --snapshot-id {left}")), "{error}");
    assert!(fake.seen_of("PutSnapshotBlock").is_empty(), "an empty snapshot costs nothing");

    let (fake, api) = simulated();
    fake.faults(|faults| faults.deny("PutSnapshotBlock"));
    let error = upload(&api, &image(1), pending()).await.unwrap_err().to_string();
    assert!(error.contains("`ebs:PutSnapshotBlock`") && error.contains("iam-policy"), "{error}");
    nothing_is_left(&fake);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_upload_leaves_nothing() {
    for seconds in [0, 1, 4, 9, 20] {
        let (fake, api) = simulated();
        fake.settings(|settings| settings.latency = Duration::from_secs(1));
        let stop = sleep(Duration::from_secs(seconds));
        let error = upload(&api, &image(1), stop).await.unwrap_err();
        assert!(matches!(error, ImageError::Interrupted), "{seconds}: {error}");
        nothing_is_left(&fake);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_changes_is_not_uploaded() {
    let (fake, api) = simulated();
    let image = image(1);
    let plan = image.file.plan().unwrap();
    let order =
        UploadOrder { name: "x-1".into(), arch: "arm64".into(), boot_mode: BootMode::Uefi, label: None };
    disk::write(image.file.path(), plan.size, EFI_SYSTEM, &[(2 * BLOCK as u64 + 77, &[2])]);
    let error = image::upload(&api, &image.file, &plan, &order, pending(), &mut |_| ()).await.unwrap_err();
    assert!(matches!(error, ImageError::Changed(2 | 4)), "{error}");
    nothing_is_left(&fake);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_arrives_otherwise_than_it_was_sent_is_refused() {
    let (fake, api) = simulated();
    let begun = SnapshotOrder {
        client_token: "t-1".into(),
        description: "x".into(),
        size: 1,
        tags: Default::default(),
    };
    let snapshot = api.start_snapshot(&begun).await.unwrap();
    assert_eq!(api.start_snapshot(&begun).await.unwrap(), snapshot, "the same token");
    let data = bytes::Bytes::from(vec![1; BLOCK]);
    let error = api.put_snapshot_block(&snapshot, 0, data, &[0; 32]).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Config);
    assert!(error.to_string().contains("Checksum does not match"), "{error}");
    let error = api.complete_snapshot(&snapshot, 0, &[0; 32]).await.unwrap_err();
    assert_eq!(error.code.as_deref(), Some("ValidationException"), "{error}");
    assert!(fake.snapshots()[0].blocks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_image_is_shared_with_its_snapshot_and_only_if_it_is_ours() {
    let (fake, api) = simulated();
    let id = upload(&api, &image(1), pending()).await.unwrap().id;
    let accounts = strings(["123456789012", "210987654321"]);
    let shared = image::share(&api, &id, &accounts, Sharing::Give).await.unwrap();
    assert_eq!(shared.len(), 2);
    assert_eq!((fake.own_images()[0].shared.len(), fake.snapshots()[0].shared.len()), (2, 2));
    let shared = image::share(&api, &id, &accounts[..1], Sharing::Take).await.unwrap();
    assert_eq!(shared.into_iter().collect::<Vec<_>>(), accounts[1..]);
    assert_eq!(fake.snapshots()[0].shared.len(), 1);

    fake.change_image(&id, |image| drop(image.tags.remove("nix-broker:image")));
    let error = image::share(&api, &id, &accounts, Sharing::Give).await.unwrap_err().to_string();
    assert!(error.contains("no image of `broker image`"), "{error}");
    let none = image::share(&api, "ami-00000000", &accounts, Sharing::Give).await.unwrap_err();
    assert!(matches!(none, ImageError::NotOurs { .. }), "{none}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_found_as_the_original_is_and_made_once() {
    let (fake, from) = simulated();
    let to = Api::over(fake.wire(), "eu-west-1", 8);
    let id = upload(&from, &image(1), pending()).await.unwrap().id;
    let (copy, was_there) = image::copy(&from, &to, &id).await.unwrap();
    assert!(!was_there);
    let inventory = image::look(&to).await.unwrap();
    assert_eq!(inventory.images[0].id, copy);
    assert_eq!(inventory.images[0].snapshots[0], inventory.snapshots[0].id);
    assert_eq!(image::copy(&from, &to, &id).await.unwrap(), (copy, true));
    assert_eq!(fake.own_images().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn old_images_go_with_their_snapshots_and_what_is_used_stays() {
    let (fake, api) = simulated();
    let mut ids = Vec::new();
    for mark in 1..=4 {
        ids.push(upload(&api, &image(mark), pending()).await.unwrap().id);
        sleep(Duration::from_secs(60)).await;
    }
    let mut launch = order(&fake, "token-1");
    launch.image.clone_from(&ids[0]);
    api.run_instance(&launch).await.unwrap();
    let begun = SnapshotOrder {
        client_token: "t-9".into(),
        description: "x".into(),
        size: 1,
        tags: fake.snapshots()[0].tags.clone(),
    };
    let half_made = api.start_snapshot(&begun).await.unwrap();

    let inventory = image::look(&api).await.unwrap();
    assert!(inventory.used.contains_key(&ids[0]));
    let now = 1_795_219_200 + 86_400 + 3_600;
    let pruning = image::choose(&inventory, 1, now);
    assert_eq!(pruning.end.iter().map(|(image, _)| &image.id).collect::<Vec<_>>(), [&ids[2], &ids[1]]);
    assert_eq!(pruning.half_made.iter().map(|one| &one.id).collect::<Vec<_>>(), [&half_made]);
    for (image, its) in &pruning.end {
        image::end(&api, Some(&image.id), its).await.unwrap();
    }
    image::end(&api, None, &[half_made]).await.unwrap();
    let left: Vec<String> = fake.own_images().into_iter().map(|image| image.id).collect();
    assert_eq!(left, [ids[0].clone(), ids[3].clone()]);
    let of_images: Vec<String> = fake.own_images().into_iter().map(|image| image.snapshot).collect();
    assert_eq!(fake.snapshots().into_iter().map(|one| one.id).collect::<Vec<_>>(), of_images);
    // Done twice it is done.
    image::end(&api, Some(&ids[1]), &pruning.end[1].1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_by_chance_no_snapshot_is_without_an_image() {
    let (mut failed, mut made) = (0, 0);
    for seed in 1_u64..=60 {
        let (fake, api) = simulated();
        let mut state = seed;
        let mut roll = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % 100
        };
        let odds = seed % 4 * 12;
        fake.faults(|faults| {
            faults.chaos(Some(Box::new(move |action, _, _| {
                // What was deleted for good is what this is about.
                if action == "DeleteSnapshot" || roll() >= odds {
                    return None;
                }
                Some(match roll() % 5 {
                    0 => Fault::LostBefore,
                    1 => Fault::LostAfter,
                    2 => Fault::throttle(),
                    3 => Fault::internal_after(),
                    _ => Fault::Refuse(Refusal::new(400, "ValidationException", "by chance")),
                })
            })));
        });
        let result = upload(&api, &image(1), pending()).await;
        match &result {
            Ok(_) => made += 1,
            Err(_) => failed += 1,
        }
        let images = fake.own_images();
        let of_images: Vec<&String> = images.iter().map(|image| &image.snapshot).collect();
        for snapshot in fake.snapshots() {
            assert!(of_images.contains(&&snapshot.id), "seed {seed}: {result:?}");
        }
    }
    assert!(failed > 5 && made > 5, "{failed} {made}");
}
