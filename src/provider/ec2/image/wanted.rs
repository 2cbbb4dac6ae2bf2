//! Which images of ours a configuration would launch now.
//!
//! Pure. Owns that nothing is ended which the next launch of a pool would take.

use std::collections::BTreeMap;

use crate::model::ec2::ImageSpec;
use crate::model::{Ec2Spec, Offer};
use crate::provider::ec2::api::OwnImage;
use crate::provider::ec2::boot::image::{ImageFact, arch_of, newest};

/// The images that these pools take, each with the name of a pool.
pub fn wanted<'a>(
    images: &[OwnImage],
    pools: impl IntoIterator<Item = (&'a str, &'a Offer, &'a Ec2Spec)>,
) -> BTreeMap<String, String> {
    let mut wanted = BTreeMap::new();
    for (pool, offer, ec2) in pools {
        let arch = offer.systems.iter().find_map(|system| arch_of(system.as_str()));
        let taken = match (&ec2.image, arch) {
            (ImageSpec::Id(id), _) => Some(id.clone()),
            (ImageSpec::Own, Some(arch)) => latest(images, arch),
            (ImageSpec::Newest { owner, name }, Some(arch)) => {
                let owned = images.iter().filter(|image| owner == "self" || *owner == image.owner);
                let facts: Vec<_> = owned.map(fact).collect();
                newest(&facts, name, arch).map(|image| image.id.clone())
            }
            (ImageSpec::Own | ImageSpec::Newest { .. }, None) => None,
        };
        if let Some(id) = taken {
            wanted.entry(id).or_insert_with(|| format!("pool `{pool}`"));
        }
    }
    wanted
}

/// What `image = "own"` launches.
fn latest(images: &[OwnImage], arch: &str) -> Option<String> {
    let fits = images.iter().filter(|image| image.arch == arch && image.state == "available");
    let latest = fits.max_by(|a, b| (&a.creation_date, &a.id).cmp(&(&b.creation_date, &b.id)));
    latest.map(|image| image.id.clone())
}

fn fact(image: &OwnImage) -> ImageFact {
    ImageFact {
        id: image.id.clone(),
        name: image.name.clone(),
        creation_date: image.creation_date.clone(),
        arch: image.arch.clone(),
        state: image.state.clone(),
        root_device: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ec2::fixtures;

    fn image(id: &str, arch: &str, date: &str) -> OwnImage {
        OwnImage {
            id: id.into(),
            name: format!("nix-broker/26.05.{date}"),
            arch: arch.into(),
            state: "available".into(),
            state_reason: None,
            creation_date: date.into(),
            snapshots: Vec::new(),
            size: 8,
            owner: "123456789012".into(),
            tags: BTreeMap::new(),
        }
    }

    fn taken(spec: ImageSpec) -> Vec<String> {
        let images = [
            image("ami-1", "x86_64", "2026-11-01"),
            image("ami-2", "x86_64", "2026-11-02"),
            image("ami-3", "arm64", "2026-11-03"),
        ];
        let pool = Ec2Spec { image: spec, ..fixtures::spec() };
        let offer = fixtures::offer("x86_64-linux", &[]);
        wanted(&images, [("zen3", &offer, &pool)]).into_keys().collect()
    }

    #[test]
    fn a_pool_wants_what_its_next_launch_would_take() {
        let by = |owner: &str| ImageSpec::Newest { owner: owner.into(), name: "nix-broker/*".into() };
        assert_eq!(taken(ImageSpec::Own), ["ami-2"]);
        assert_eq!(taken(ImageSpec::Id("ami-1".into())), ["ami-1"]);
        assert_eq!(taken(by("self")), ["ami-2"]);
        assert_eq!(taken(by("123456789012")), ["ami-2"]);
        assert_eq!(taken(by("427812963091")), [""; 0]);
    }
}
