//! Pools on EC2: every key, every mistake, and what a pool comes to offer.
#![cfg(feature = "ec2")]

use std::time::Duration;

use super::*;
use crate::config::tests::{good, lines, parse};
use crate::model::ec2::{CacheSpec, RoleArn};
use crate::model::{Caps, PoolSpec, ProviderSpec, Slots, Usd};

/// A pool that is right, but for these lines in its body and its table.
fn cloud(body: &str, table: &str) -> String {
    format!("[[pool]]\nname = \"p\"\n{body}\n[pool.ec2]\n{table}\n")
}

#[track_caller]
fn read_pool(body: &str, table: &str) -> PoolSpec {
    good(&cloud(body, table)).pools.remove(0)
}

fn ec2(pool: &PoolSpec) -> &Ec2Spec {
    match &pool.provider {
        ProviderSpec::Ec2(spec) => spec,
        ProviderSpec::Local(_) | ProviderSpec::Hosts(_) => panic!("EC2"),
    }
}

fn words<T: std::fmt::Display>(words: impl IntoIterator<Item = T>) -> String {
    words.into_iter().map(|word| word.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn an_empty_table_gets_every_default() {
    let config = good(&cloud("", ""));
    assert_eq!((config.caps, config.warnings), (Caps::default(), vec![]));
    let pool = &config.pools[0];
    assert_eq!((pool.min_builders, pool.max_builders), (0, 1));
    assert_eq!(pool.slots, Slots::Auto { expected: 8, most: None });
    let times = [pool.idle_timeout, pool.surplus_idle_timeout, pool.max_lifetime, pool.launch_timeout];
    assert_eq!(times.map(|time| time.as_secs()), [1_200, 60, 28_800, 300]);
    assert_eq!(
        *ec2(pool),
        Ec2Spec {
            profile: None,
            regions: vec![],
            market: Market::OnDemand,
            types: vec![],
            exact: false,
            max_price: None,
            image: ImageSpec::Newest { owner: "427812963091".to_owned(), name: "nixos/26.05*".to_owned() },
            subnets: vec![],
            security_groups: vec![],
            reach: Reach::Public,
            disk: DiskSpec { size: 100, throughput: 500, iops: 3_000 },
            idle_action: IdleAction::Terminate,
            lease: Duration::from_secs(900),
            cache: None,
            expiry_role: None,
        }
    );
}

#[test]
fn every_key_is_taken_as_written() {
    let config = good(&format!(
        "[cost]\nmax-per-hour = 5\nmax-per-day = 20.5\nmax-per-month = \"200\"\n{}",
        cloud(
            "features = [\"gccarch-znver3\"]\nidle-timeout = \"1m\"\nmax-builders = 3",
            r#"
            profile = "builds"
            regions = ["eu-central-1", "eu-west-1"]
            market = "on-demand"
            types = ["c7a.4xlarge", "c6a.4xlarge"]
            max-price = 1.20
            image = "ami-0123456789abcdef0"
            subnets = ["subnet-0123456789abcdef0", "subnet-01234567"]
            security-groups = ["sg-0123456789abcdef0"]
            proxy-command = "ssh -W %h:%p bastion"
            disk-size = 300
            disk-throughput = 1000
            disk-iops = 4000
            idle-action = "stop"
            max-stopped = "3days"
            lease = "30m"
            cache = "s3://builds?region=eu-central-1"
            cache-public-key = "cache-1:PxOXCzycYaWCvKr6Fxsj7Y6u5NL7y7SY44G0vqgNV00="
            cache-secret-key-file = "/run/credentials/cache"
            expiry-role = "arn:aws:iam::123456789012:role/nix-broker-expiry"
            "#
        )
    ));
    let usd = |text| Usd::parse(text).unwrap();
    let caps = Caps { hour: Some(HourlyRate(usd("5"))), day: Some(usd("20.5")), month: Some(usd("200")) };
    assert_eq!((config.caps, config.warnings), (caps, vec![]));
    let pool = &config.pools[0];
    assert_eq!((pool.max_builders, pool.idle_timeout.as_secs()), (3, 60));
    assert_eq!(pool.surplus_idle_timeout, pool.idle_timeout, "no longer than the last one");
    assert_eq!(pool.slots, Slots::Auto { expected: 16, most: Some(16) }, "the only size that is listed");
    assert_eq!(
        *ec2(pool),
        Ec2Spec {
            profile: Some("builds".to_owned()),
            regions: vec!["eu-central-1".to_owned(), "eu-west-1".to_owned()],
            market: Market::OnDemand,
            types: vec!["c7a.4xlarge".to_owned(), "c6a.4xlarge".to_owned()],
            exact: false,
            max_price: Some(HourlyRate(usd("1.2"))),
            image: ImageSpec::Id("ami-0123456789abcdef0".to_owned()),
            subnets: vec!["subnet-0123456789abcdef0".to_owned(), "subnet-01234567".to_owned()],
            security_groups: vec!["sg-0123456789abcdef0".to_owned()],
            reach: Reach::Proxy("ssh -W %h:%p bastion".to_owned()),
            disk: DiskSpec { size: 300, throughput: 1_000, iops: 4_000 },
            idle_action: IdleAction::Stop { max_stopped: Duration::from_secs(3 * 86_400) },
            lease: Duration::from_secs(1_800),
            cache: Some(Box::new(CacheSpec {
                url: "s3://builds?region=eu-central-1".to_owned(),
                public_key: "cache-1:PxOXCzycYaWCvKr6Fxsj7Y6u5NL7y7SY44G0vqgNV00=".to_owned(),
                secret_key_file: Some("/run/credentials/cache".into()),
            })),
            expiry_role: RoleArn::parse("arn:aws:iam::123456789012:role/nix-broker-expiry"),
        }
    );
}

#[test]
fn the_other_spellings_are_taken_too() {
    let pool = read_pool(
        "",
        "region = \"eu-central-1\"\nmarket = \"spot\"\nreach = \"private\"\nmax-price = \"0.80\"",
    );
    let spec = ec2(&pool);
    assert_eq!((spec.regions.len(), spec.market, &spec.reach), (1, Market::Spot, &Reach::Private));
    assert_eq!(spec.max_price, Usd::parse("0.8").map(HourlyRate));
    assert_eq!(ec2(&read_pool("", "image = \"own\"")).image, ImageSpec::Own);
    let role = "expiry-role = \"arn:aws-us-gov:iam::123456789012:role/r\"\nregion = \"us-gov-west-1\"";
    assert!(ec2(&read_pool("", role)).expiry_role.is_some());
    let pool = read_pool("", "image-name = \"nixos/25.11*\"\nidle-action = \"hibernate\"");
    let spec = ec2(&pool);
    assert_eq!(
        spec.image,
        ImageSpec::Newest { owner: "427812963091".to_owned(), name: "nixos/25.11*".to_owned() }
    );
    assert_eq!(spec.idle_action, IdleAction::Hibernate { max_stopped: Duration::from_secs(7 * 86_400) });
}

#[test]
fn a_pool_offers_what_all_its_processors_run() {
    for (body, table, systems, features) in [
        (
            "features = [\"gccarch-znver3\"]",
            "",
            "i686-linux x86_64-linux",
            "benchmark big-parallel gccarch-broadwell gccarch-haswell gccarch-ivybridge gccarch-nehalem \
             gccarch-sandybridge gccarch-skylake gccarch-westmere gccarch-x86-64 gccarch-x86-64-v2 gccarch-x86-64-v3 \
             gccarch-znver1 gccarch-znver2 gccarch-znver3",
        ),
        (
            "features = [\"gccarch-skylake\", \"kvm\"]",
            "types = [\"c6i.large\", \"c7i.large\"]",
            "i686-linux x86_64-linux",
            "benchmark big-parallel gccarch-broadwell gccarch-cannonlake gccarch-cascadelake gccarch-haswell \
             gccarch-icelake-client gccarch-icelake-server gccarch-ivybridge gccarch-nehalem gccarch-sandybridge \
             gccarch-skylake gccarch-skylake-avx512 gccarch-westmere gccarch-x86-64 gccarch-x86-64-v2 gccarch-x86-64-v3 \
             gccarch-x86-64-v4 kvm",
        ),
        (
            "systems = [\"aarch64-linux\"]",
            "",
            "aarch64-linux",
            "benchmark big-parallel gccarch-armv8-a gccarch-armv8.1-a gccarch-armv8.2-a",
        ),
        // The system follows from the feature, or from the types.
        (
            "features = [\"gccarch-armv8.4-a\"]",
            "",
            "aarch64-linux",
            "benchmark big-parallel gccarch-armv8-a gccarch-armv8.1-a gccarch-armv8.2-a gccarch-armv8.3-a \
             gccarch-armv8.4-a",
        ),
        (
            "",
            "types = [\"c6g.large\"]",
            "aarch64-linux",
            "benchmark big-parallel gccarch-armv8-a gccarch-armv8.1-a gccarch-armv8.2-a",
        ),
        // What is listed alone.
        (
            "systems = [\"i686-linux\"]\nfeatures = [\"gccarch-znver3\", \"my-feature\"]",
            "exact = true",
            "i686-linux",
            "benchmark big-parallel gccarch-znver3 my-feature",
        ),
    ] {
        let config = good(&cloud(body, table));
        assert_eq!(config.warnings, [], "{body} {table}");
        let offer = &config.pools[0].offer;
        assert_eq!(words(&offer.systems), systems, "{body} {table}");
        assert_eq!(words(&offer.features), features, "{body} {table}");
    }
    let reserved = read_pool("mandatory-features = [\"gccarch-znver5\"]", "");
    assert_eq!(words(&reserved.offer.mandatory), "gccarch-znver5");
    assert!(words(&reserved.offer.features).contains("gccarch-znver4"));
}

#[test]
fn slots_are_planned_with_the_machine_of_a_single_build() {
    for (table, expected, most) in [
        ("", 8, None),
        ("max-price = 0.25", 4, None),
        ("max-price = 0.25\nmarket = \"spot\"", 8, None),
        ("types = [\"c7a.16xlarge\", \"c7a.32xlarge\"]", 64, Some(128)),
        ("types = [\"c7a.16xlarge\", \"c7a.32xlarge\"]\nmax-price = 5", 64, Some(64)),
        ("types = [\"c7a.large\", \"c7a.xlarge\"]", 4, Some(4)),
    ] {
        assert_eq!(read_pool("", table).slots, Slots::Auto { expected, most }, "{table}");
    }
    assert_eq!(read_pool("slots = 3", "").slots, Slots::Fixed(3));
}

#[test]
fn each_mistake_is_named_with_its_line_and_key() {
    let zen3 = "features = [\"gccarch-znver3\"]";
    let table = |table: &str| cloud("", table);
    let cases: &[(String, &str)] = &[
        (table("regoin = \"x\""), "5: pool.p.ec2.regoin: unknown key; did you mean `region`?"),
        (table("region = \"Frankfurt\""), "5: pool.p.ec2.region: `Frankfurt` is not a region such as"),
        (
            table("regions = [\"eu-central-1\",\n\"eu-central-1a\"]"),
            "6: pool.p.ec2.regions: `eu-central-1a` is a zone; its region is `eu-central-1`",
        ),
        (
            table("regions = [\"eu-west-1\", \"eu-west-1\"]"),
            "5: pool.p.ec2.regions: `eu-west-1` is listed twice",
        ),
        (
            table("regions = []\nregion = \"eu-west-1\""),
            "6: pool.p.ec2.region: given together with `regions`",
        ),
        (table("profile = \"a b\""), "5: pool.p.ec2.profile: `a b` is not a profile"),
        (table("market = \"cheap\""), "5: pool.p.ec2.market: `cheap` is neither \"on-demand\" nor \"spot\""),
        (table("types = []"), "5: pool.p.ec2.types: empty"),
        (
            table("types = [\"c6a.lagre\"]"),
            "5: pool.p.ec2.types: `c6a.lagre` is no instance type in the table of 2026-07-20 (us-east-1); did you mean",
        ),
        (
            table("types = [\"c5.gigantic\"]"),
            "5: pool.p.ec2.types: `c5.gigantic` is no instance type in the table of 2026-07-20 (us-east-1); the sizes of \
             `c5` are ",
        ),
        (
            table("types = [\"hpc7a.96xlarge\"]"),
            "5: pool.p.ec2.types: `hpc7a.96xlarge` has no price in the table of 2026-07-20",
        ),
        (table("types = [\"c6a.large\", \"c6a.large\"]"), "5: pool.p.ec2.types: `c6a.large` is listed twice"),
        (table("exact = \"yes\""), "5: pool.p.ec2.exact: expected true or false, found text"),
        (table("exact = true"), "5: pool.p.ec2.exact: says which processor it must be only together with"),
        (table("max-price = \"cheap\""), "5: pool.p.ec2.max-price: `cheap` is not an amount"),
        (table("max-price = 0"), "5: pool.p.ec2.max-price: `0` is not an amount of US dollars above 0"),
        (table("max-price = -1.5"), "5: pool.p.ec2.max-price: `-1.5` is not an amount"),
        (table("max-price = inf"), "5: pool.p.ec2.max-price: `inf` is not an amount"),
        (table("max-price = true"), "5: pool.p.ec2.max-price: expected an amount of US dollars such as 0.80"),
        (table("image = \"nixos\""), "5: pool.p.ec2.image: `nixos` is neither \"own\" nor an AMI such as"),
        (
            table("image = \"ami-01234567\"\nimage-name = \"x\""),
            "6: pool.p.ec2.image-name: given together with `image`",
        ),
        (table("image-owner = \"NixOS\""), "5: pool.p.ec2.image-owner: `NixOS` is neither an account"),
        (table("image-owner = \"self\""), "5: pool.p.ec2.image-owner: without `image-name`"),
        (table("image-name = \"\""), "5: pool.p.ec2.image-name: `` is not the name of an image"),
        (
            table("subnets = [\"default\"]"),
            "5: pool.p.ec2.subnets: `default` is not an id such as \"subnet-01",
        ),
        (table("security-groups = [\"sg-1;rm\"]"), "5: pool.p.ec2.security-groups: `sg-1;rm` is not an id"),
        (table("reach = \"vpn\""), "5: pool.p.ec2.reach: `vpn` is neither \"public\" nor \"private\""),
        (
            table("reach = \"private\"\nproxy-command = \"nc %h %p\""),
            "5: pool.p.ec2.reach: given together with `proxy-command`",
        ),
        (table("proxy-command = \"nc x 22\""), "5: pool.p.ec2.proxy-command: names neither `%h`"),
        (table("proxy-command = \"nc %h\\nid\""), "5: pool.p.ec2.proxy-command: a command is one line"),
        (table("disk-size = 10"), "5: pool.p.ec2.disk-size: 10 is not between 20 and 65536"),
        (table("disk-throughput = 100"), "5: pool.p.ec2.disk-throughput: 100 is not between 125 and 2000"),
        (
            table("disk-throughput = 1000"),
            "5: pool.p.ec2.disk-throughput: a gp3 volume needs 4 operations a second for each MiB/s: 1000 MiB/s take \
             `disk-iops = 4000`",
        ),
        (
            table("disk-size = 20\ndisk-iops = 20000"),
            "6: pool.p.ec2.disk-iops: a gp3 volume of 20 GiB has at most 10000",
        ),
        (table("idle-action = \"sleep\""), "5: pool.p.ec2.idle-action: `sleep` is none of"),
        (table("max-stopped = \"1d\""), "5: pool.p.ec2.max-stopped: nothing is stopped"),
        (
            table("idle-action = \"hibernate\"\nmax-stopped = \"90d\""),
            "6: pool.p.ec2.max-stopped: EC2 keeps an instance hibernated for 60 days at most",
        ),
        (
            table("market = \"spot\"\nidle-action = \"stop\""),
            "6: pool.p.ec2.idle-action: spot instances cannot be stopped",
        ),
        (
            table("expiry-role = \"nix-broker-expiry\""),
            "5: pool.p.ec2.expiry-role: `nix-broker-expiry` is not the ARN of a role such as \"arn:aws:iam::",
        ),
        (
            table("region = \"cn-north-1\"\nexpiry-role = \"arn:aws:iam::123456789012:role/r\""),
            "6: pool.p.ec2.expiry-role: a role of the partition `aws` is not known in `cn-north-1`, which is in `aws-cn`",
        ),
        (table("expiry-role = 7"), "5: pool.p.ec2.expiry-role: expected text in quotes, found a number"),
        (table("lease = \"5s\""), "5: pool.p.ec2.lease: `5s` is shorter than 1m"),
        (
            table("cache = \"https://c.example.org\""),
            "5: pool.p.ec2.cache: without `cache-public-key` builders would trust nothing of it",
        ),
        (
            table(
                "cache = \"ssh://host\"\ncache-public-key = \"cache-1:PxOXCzycYaWCvKr6Fxsj7Y6u5NL7y7SY44G0vqgNV00=\"",
            ),
            "5: pool.p.ec2.cache: `ssh://host` is no binary cache",
        ),
        (
            table("cache = \"https://c.example.org\"\ncache-public-key = \"c\""),
            "6: pool.p.ec2.cache-public-key: `c` is not a public key",
        ),
        (
            table("cache-secret-key-file = \"/k\""),
            "5: pool.p.ec2.cache-secret-key-file: without `cache`: say which",
        ),
        // What does not go together with the rest of the pool.
        (
            cloud("features = [\"gccarch-zen3\"]", ""),
            "3: pool.p.features: `gccarch-zen3` names no processor that is known here; known are ",
        ),
        (
            cloud("mandatory-features = [\"gccarch-tigerlake\"]", ""),
            "3: pool.p.mandatory-features: no processor on EC2 runs code for `tigerlake` safely",
        ),
        (
            cloud("systems = [\"aarch64-linux\", \"x86_64-linux\"]", ""),
            "3: pool.p.systems: an instance has one kind of processor",
        ),
        (
            cloud("systems = [\"armv7l-linux\"]", ""),
            "3: pool.p.systems: no instance builds for `armv7l-linux`; EC2 has `x86_64-linux`",
        ),
        (
            cloud("systems = [\"aarch64-linux\"]\nfeatures = [\"gccarch-znver3\"]", ""),
            "4: pool.p.features: `gccarch-znver3` is of x86_64 processors, and the pool builds for `aarch64-linux`",
        ),
        (
            cloud("features = [\"gccarch-znver3\", \"gccarch-sapphirerapids\"]", ""),
            "3: pool.p.features: no instance type with a known price runs code for `sapphirerapids` and `znver3`",
        ),
        (
            cloud("features = [\"gccarch-skylake\"]", "exact = true"),
            "5: pool.p.ec2.exact: no instance type is known to be exactly `skylake`",
        ),
        (
            cloud(zen3, "types = [\"c6a.large\",\n\"c5.large\"]"),
            "5: pool.p.ec2.types: `c5.large` (Skylake-SP or Cascade Lake) does not run code for `znver3`",
        ),
        (
            cloud(zen3, "exact = true\ntypes = [\"c7a.large\"]"),
            "6: pool.p.ec2.types: `c7a.large` (Genoa) is a superset, and the pool is `exact`",
        ),
        (
            cloud(zen3, "types = [\"c7g.large\"]"),
            "5: pool.p.ec2.types: `c7g.large` is an arm64 type, and the pool builds for `x86_64-linux`",
        ),
        ("[cost]\nmax-per-day = 0\n".to_owned() + &table(""), "2: cost.max-per-day: `0` is not an amount"),
        (
            "[cost]\nper-day = 1\n".to_owned() + &table(""),
            "2: cost.per-day: unknown key; known here: `max-per-hour`",
        ),
        ("cost = 5\n".to_owned() + &table(""), "1: cost: expected a table (`[cost]`), found a number"),
    ];
    for (text, expected) in cases {
        let problems = parse(text).expect_err(text);
        let found = lines(&problems);
        assert!(
            found.lines().any(|line| line.starts_with(&format!("config.toml:{expected}"))),
            "\n--- file\n{text}\n--- expected\nconfig.toml:{expected}\n--- found\n{found}"
        );
    }
}

#[test]
fn a_pool_for_which_nothing_is_launched_is_warned_of() {
    let config = good(&cloud("features = [\"gccarch-znver3\", \"kvm\"]", ""));
    assert!(
        lines(&config.warnings).starts_with(
            "config.toml:3: pool.p.features: `kvm` needs nested virtualisation, which on 2026-07-20 none"
        ),
        "{}",
        lines(&config.warnings)
    );
    let config = good(&cloud("features = [\"gccarch-znver3\", \"kvm\"]", "types = [\"c6a.metal\"]"));
    assert_eq!(config.warnings, []);
    let config = good(&cloud("", "max-price = 0.01"));
    assert!(
        lines(&config.warnings).starts_with(
            "config.toml:5: pool.p.ec2.max-price: the cheapest type that will do, c6a.large, was $0.08/h on 2026-07-20"
        ),
        "{}",
        lines(&config.warnings)
    );
    assert_eq!(good(&cloud("", "max-price = 0.01\nmarket = \"spot\"")).warnings, []);
}
