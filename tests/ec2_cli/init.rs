//! `broker init`.

use super::{BROKER, Desk, ONE_POOL, OTHER_BROKER, REGION, address_service};

#[test]
fn what_is_missing_is_shown_and_nothing_is_changed() {
    let desk = Desk::new(ONE_POOL);
    insta::assert_snapshot!(desk.run(&["init", "--dry-run"]).text(), @r#"
    exit 0
    --- stdout
    REGION        DO         WHAT
    eu-central-1  use        VPC `vpc-00000000000000001` (the default one)
    eu-central-1  use        subnet `subnet-00000000000000003` in eu-central-1a
    eu-central-1  use        subnet `subnet-00000000000000004` in eu-central-1b
    eu-central-1  use        subnet `subnet-00000000000000005` in eu-central-1c
    eu-central-1  create     security group `nix-broker` in `vpc-00000000000000001`
    eu-central-1  authorize  tcp 22 from the group itself in the new group
    eu-central-1  authorize  tcp 22 from 198.51.100.7/32 in the new group

    3 changes to make; nothing was changed.
    "#);
    assert_eq!(desk.deeds(), [""; 0]);
}

#[test]
fn without_a_person_nothing_is_done_unless_it_was_said_before() {
    let desk = Desk::new(ONE_POOL);
    let words = desk.run(&["init"]).ended(1);
    assert!(words.contains("--yes") && words.contains("--dry-run"), "{words}");
    assert_eq!(desk.deeds(), [""; 0]);
}

#[test]
fn it_is_made_once_and_then_there() {
    let desk = Desk::new(ONE_POOL).with_broker(BROKER);
    let before = desk.fake.network(REGION);
    insta::assert_snapshot!(desk.run(&["init", "--yes"]).text(), @r#"
    exit 0
    --- stdout
    REGION        DO         WHAT
    eu-central-1  use        VPC `vpc-00000000000000001` (the default one)
    eu-central-1  use        subnet `subnet-00000000000000003` in eu-central-1a
    eu-central-1  use        subnet `subnet-00000000000000004` in eu-central-1b
    eu-central-1  use        subnet `subnet-00000000000000005` in eu-central-1c
    eu-central-1  create     security group `nix-broker` in `vpc-00000000000000001`
    eu-central-1  authorize  tcp 22 from the group itself in the new group
    eu-central-1  authorize  tcp 22 from 198.51.100.7/32 in the new group
    ok    create security group `nix-broker` in `vpc-00000000000000001`
    ok    authorize tcp 22 from the group itself in the new group
    ok    authorize tcp 22 from 198.51.100.7/32 in the new group

    Done. `broker doctor --aws` checks the rest.
    "#);
    let made = desk.fake.network(REGION);
    assert_eq!(made.len(), before.len() + 3);
    assert_eq!(made.last().unwrap(), &format!("nix-broker tcp 22-22 198.51.100.7/32 (nix-broker {BROKER})"));
    insta::assert_snapshot!(desk.run(&["init", "--yes"]).text(), @r#"
    exit 0
    --- stdout
    REGION        DO   WHAT
    eu-central-1  use  VPC `vpc-00000000000000001` (the default one)
    eu-central-1  use  subnet `subnet-00000000000000003` in eu-central-1a
    eu-central-1  use  subnet `subnet-00000000000000004` in eu-central-1b
    eu-central-1  use  subnet `subnet-00000000000000005` in eu-central-1c
    eu-central-1  use  security group `sg-00000000000000016`

    Nothing to do: the network is there.
    "#);
    assert_eq!(desk.fake.network(REGION), made);
    let words = desk.run(&["init", "--remove", "--yes"]).ended(0);
    assert!(words.contains("delete security group"), "{words}");
    assert_eq!(desk.fake.network(REGION), before);
    let words = desk.run(&["init", "--remove", "--yes"]).ended(0);
    assert!(words.contains("Nothing to do"), "{words}");
}

#[test]
fn everything_made_is_tagged_from_its_first_moment() {
    let desk = Desk::new(ONE_POOL);
    let (_, subnets) = desk.fake.default_network(REGION);
    desk.fake.forget_subnet(REGION, &subnets[1].1);
    desk.run(&["init", "--yes"]).ended(0);
    for (action, resource) in [("CreateSecurityGroup", "security-group"), ("CreateSubnet", "subnet")] {
        let seen = desk.fake.seen_of(action);
        assert_eq!(seen.len(), 1, "{action}");
        let tags = seen[0].form.tags_for(resource);
        assert_eq!(tags["ManagedBy"], "nix-broker");
        assert_eq!(tags["nix-broker:network"], "1");
    }
    let subnet = &desk.fake.seen_of("CreateSubnet")[0].form;
    assert_eq!(subnet.get("AvailabilityZone"), Some("eu-central-1b"));
    assert_eq!(subnet.get("CidrBlock"), Some("172.31.16.0/20"));
    desk.run(&["init", "--remove", "--yes"]).ended(0);
    assert_eq!(desk.fake.network(REGION).len(), 1 + 2);
}

#[test]
fn a_region_without_a_default_vpc_gets_one_and_loses_it_again() {
    let desk = Desk::new(ONE_POOL);
    desk.fake.forget_default_vpc(REGION);
    assert_eq!(desk.fake.network(REGION), [""; 0]);
    let words = desk.run(&["init", "--yes"]).ended(0);
    assert!(words.contains("create the default VPC"), "{words}");
    let made = desk.fake.network(REGION);
    assert_eq!(made.len(), 1 + 3 + 1 + 1 + 2, "{made:?}");
    let words = desk.run(&["init", "--yes"]).ended(0);
    assert!(words.contains("Nothing to do"), "{words}");
    desk.run(&["init", "--remove", "--yes"]).ended(0);
    assert_eq!(desk.fake.network(REGION), [""; 0]);
}

#[test]
fn what_has_instances_stays_and_is_named() {
    let desk = Desk::new(ONE_POOL);
    desk.run(&["init", "--yes"]).ended(0);
    let made = desk.fake.network(REGION);
    let group = made.iter().rfind(|line| line.starts_with("sg-")).unwrap().clone();
    let instance = desk.launch(REGION, std::slice::from_ref(&group), &[]);
    let words = desk.run(&["init", "--remove", "--yes"]).ended(1);
    assert!(words.contains(&format!("`{group}` stays: it has `{instance}`")), "{words}");
    assert_eq!(desk.fake.network(REGION), made);
}

#[test]
fn a_new_address_replaces_the_old_one_and_leaves_other_brokers_alone() {
    let other = Desk::new(ONE_POOL);
    let mut desk = Desk::new(ONE_POOL).with_broker(BROKER);
    desk.run(&["init", "--yes"]).ended(0);
    // Another machine with a broker of its own, on the same account.
    let there =
        Desk { fake: desk.fake.clone(), server: super::serve(&desk.fake), ..other }.with_broker(OTHER_BROKER);
    let there = Desk { address_url: address_service("203.0.113.9"), ..there };
    there.run(&["init", "--yes"]).ended(0);
    desk.moves_to("203.0.113.77");
    insta::assert_snapshot!(desk.run(&["init", "--yes"]).text(), @r#"
    exit 0
    --- stdout
    REGION        DO         WHAT
    eu-central-1  use        VPC `vpc-00000000000000001` (the default one)
    eu-central-1  use        subnet `subnet-00000000000000003` in eu-central-1a
    eu-central-1  use        subnet `subnet-00000000000000004` in eu-central-1b
    eu-central-1  use        subnet `subnet-00000000000000005` in eu-central-1c
    eu-central-1  use        security group `sg-00000000000000016`
    eu-central-1  authorize  tcp 22 from 203.0.113.77/32 in `sg-00000000000000016`
    eu-central-1  revoke     tcp 22 from 198.51.100.7/32 in `sg-00000000000000016`: this broker was there earlier
    ok    authorize tcp 22 from 203.0.113.77/32 in `sg-00000000000000016`
    ok    revoke tcp 22 from 198.51.100.7/32 in `sg-00000000000000016`: this broker was there earlier

    Done. `broker doctor --aws` checks the rest.
    "#);
    let rules: Vec<_> =
        desk.fake.network(REGION).into_iter().filter(|line| line.starts_with("nix-broker")).collect();
    assert_eq!(
        rules,
        [
            "nix-broker tcp 22-22 sg-00000000000000016 (nix-broker builders)".to_owned(),
            format!("nix-broker tcp 22-22 203.0.113.9/32 (nix-broker {OTHER_BROKER})"),
            format!("nix-broker tcp 22-22 203.0.113.77/32 (nix-broker {BROKER})"),
        ]
    );
}

#[test]
fn a_group_of_an_earlier_version_gets_what_it_lacks_and_goes_with_it() {
    let alone = ONE_POOL.replace("[pool.ec2]", "direct = false\n[pool.ec2]");
    let desk = Desk::new(&alone).with_broker(BROKER);
    let before = desk.fake.network(REGION);
    desk.run(&["init", "--yes"]).ended(0);
    let made = desk.fake.network(REGION);
    assert_eq!(made.len(), before.len() + 2, "builders that send each other nothing need not meet");
    assert!(desk.run(&["doctor", "--aws"]).ended(0).find("to each other").is_none());

    desk.configure(ONE_POOL);
    insta::assert_snapshot!(desk.run(&["init", "--dry-run"]).text(), @r#"
    exit 0
    --- stdout
    REGION        DO         WHAT
    eu-central-1  use        VPC `vpc-00000000000000001` (the default one)
    eu-central-1  use        subnet `subnet-00000000000000003` in eu-central-1a
    eu-central-1  use        subnet `subnet-00000000000000004` in eu-central-1b
    eu-central-1  use        subnet `subnet-00000000000000005` in eu-central-1c
    eu-central-1  use        security group `sg-00000000000000016`
    eu-central-1  authorize  tcp 22 from the group itself in `sg-00000000000000016`

    1 change to make; nothing was changed.
    "#);
    let told = desk.run(&["doctor", "--aws"]).ended(0);
    let missing =
        "warn  pool `zen3`: security group `sg-00000000000000016` does not let its builders in to each other";
    assert!(told.contains(missing) && told.contains("`broker init`, or the next launch, adds"), "{told}");
    desk.run(&["init", "--yes"]).ended(0);
    assert_eq!(desk.fake.network(REGION).len(), made.len() + 1);
    assert!(desk.run(&["doctor", "--aws"]).ended(0).find("to each other").is_none());
    assert!(desk.run(&["init", "--yes"]).ended(0).contains("Nothing to do"));
    // Whoever does not need it leaves it to those who may.
    desk.configure(&alone);
    assert!(desk.run(&["init", "--yes"]).ended(0).contains("Nothing to do"));
    desk.run(&["init", "--remove", "--yes"]).ended(0);
    assert_eq!(desk.fake.network(REGION), before);
}

#[test]
fn an_address_that_was_told_is_not_asked_for() {
    let desk = Desk::new(ONE_POOL).with("NIX_BROKER_ADDRESS_URL", "http://127.0.0.1:1/");
    let words = desk.run(&["init", "--yes"]).ended(1);
    assert!(words.contains("`http://127.0.0.1:1/`") && words.contains("--address"), "{words}");
    desk.run(&["init", "--yes", "--address", "203.0.113.0/28"]).ended(0);
    assert!(desk.fake.network(REGION).last().unwrap().contains("203.0.113.0/28 (nix-broker init --address)"));
}

#[test]
fn a_network_that_is_reached_from_inside_lets_in_the_vpc_only() {
    let private = format!("{ONE_POOL}reach = \"private\"\n");
    let desk = Desk::new(&private).with("NIX_BROKER_ADDRESS_URL", "http://127.0.0.1:1/");
    desk.run(&["init", "--yes"]).ended(0);
    let network = desk.fake.network(REGION);
    assert_eq!(network.last().unwrap(), "nix-broker tcp 22-22 172.31.0.0/16 (nix-broker VPC)");
}

#[test]
fn every_region_of_every_pool_gets_what_it_needs() {
    let config = format!(
        "{ONE_POOL}\n[[pool]]\nname = \"arm\"\nsystems = [\"aarch64-linux\"]\n[pool.ec2]\n\
         regions = [\"eu-central-1\", \"eu-west-1\"]\n"
    );
    let desk = Desk::new(&config);
    let words = desk.run(&["init", "--yes"]).ended(0);
    assert!(words.contains("eu-west-1"), "{words}");
    for region in [REGION, "eu-west-1"] {
        let rules = desk.fake.network(region).iter().filter(|line| line.starts_with("nix-broker ")).count();
        assert_eq!(rules, 2, "{region}: from outside, and from each other");
    }
}

#[test]
fn a_private_address_or_garbage_opens_nothing() {
    for (answer, words) in [
        ("10.1.2.3", "no address on the internet"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("<html>Log in</html>", "`<html>Log in</html>`"),
    ] {
        let mut desk = Desk::new(ONE_POOL);
        desk.moves_to(answer);
        let said = desk.run(&["init", "--yes"]).ended(1);
        assert!(said.contains(words) && said.contains("--address"), "{said}");
        assert_eq!(desk.deeds(), [""; 0]);
    }
}

#[test]
fn a_configuration_without_pools_on_ec2_has_nothing_to_make() {
    let desk = Desk::new("[[pool]]\nname = \"here\"\n[pool.local]\n");
    let words = desk.run(&["init"]).ended(1);
    assert!(words.contains("no pool of `DIR/config.toml` is on EC2"), "{words}");
    std::fs::remove_file(desk.dir.path().join("config.toml")).unwrap();
    let words = desk.run(&["init", "--remove"]).ended(1);
    assert!(words.contains("there is no configuration"), "{words}");
}

#[test]
fn a_group_that_a_person_opened_wide_is_pointed_out_and_left_alone() {
    let desk = Desk::new(ONE_POOL);
    desk.run(&["init", "--yes"]).ended(0);
    let group = desk.fake.network(REGION).into_iter().rfind(|line| line.starts_with("sg-")).unwrap();
    let api = nix_broker::provider::ec2::api::Api::over(desk.fake.wire(), REGION, 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(api.authorize_ingress(&group, "0.0.0.0/0", "quick fix")).unwrap();
    let made = desk.fake.network(REGION);
    let words = desk.run(&["init", "--yes"]).ended(0);
    assert!(words.contains("also lets in tcp 22 from 0.0.0.0/0"), "{words}");
    assert_eq!(desk.fake.network(REGION), made);
}

/// A desk without a configuration.
fn fresh() -> Desk {
    let desk = Desk::new("").with("AWS_REGION", REGION);
    std::fs::remove_file(desk.dir.path().join("config.toml")).unwrap();
    desk
}

#[test]
fn a_first_configuration_is_proposed_with_its_price_and_only_shown() {
    let desk = fresh();
    insta::assert_snapshot!(desk.run(&["init", "--dry-run", "--pool", "x86_64-linux:gccarch-znver3"]).text());
    assert!(!desk.dir.path().join("config.toml").exists());
    assert_eq!(desk.deeds(), [""; 0]);
    let words = desk.run(&["init"]).ended(1);
    assert!(words.contains("--yes"), "nobody can be asked: {words}");
    assert!(!desk.dir.path().join("config.toml").exists());
}

#[test]
fn a_first_configuration_is_written_with_its_network_and_never_over_another() {
    let desk = fresh();
    let words = desk.run(&["init", "--yes", "--pool", "aarch64-linux"]).ended(0);
    assert!(words.contains("Wrote `DIR/config.toml`") && words.contains("create security group"), "{words}");
    let written = std::fs::read_to_string(desk.dir.path().join("config.toml")).unwrap();
    assert!(written.contains("systems = [\"aarch64-linux\"]"), "{written}");
    desk.run(&["check"]).ended(0);
    let words = desk.run(&["init", "--yes"]).ended(0);
    assert!(words.contains("Nothing to do"), "{words}");
    let words = desk.run(&["init", "--yes", "--pool", "local"]).ended(1);
    assert!(words.contains("already"), "{words}");
    assert_eq!(std::fs::read_to_string(desk.dir.path().join("config.toml")).unwrap(), written);
}

#[test]
fn without_credentials_the_first_pool_is_this_machine() {
    let desk = fresh().with("AWS_ACCESS_KEY_ID", "").with("AWS_SECRET_ACCESS_KEY", "");
    let words = desk.run(&["init", "--yes"]).ended(0);
    assert!(words.contains("EC2 cannot be used") && words.contains("Wrote"), "{words}");
    let written = std::fs::read_to_string(desk.dir.path().join("config.toml")).unwrap();
    assert!(written.contains("[pool.local]") && !written.contains("ec2"), "{written}");
    let desk = fresh().with("AWS_ACCESS_KEY_ID", "").with("AWS_SECRET_ACCESS_KEY", "");
    desk.run(&["init", "--yes", "--pool", "x86_64-linux"]).ended(1);
    assert!(!desk.dir.path().join("config.toml").exists(), "what was asked for cannot be had");
}

#[test]
fn a_flakes_machines_say_which_pools_are_needed() {
    // A Nix that answers as one does for such a flake; the real one is asked in tests/faces.rs.
    let desk = fresh();
    let bin = desk.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let nix = "#!/bin/sh\ncase \"$*\" in --version) echo 'nix (Nix) 2.34.8';; *eval*/flake#nixosConfigurations*) \
               echo '{\"tiger\":{\"system\":\"x86_64-linux\",\"gccarch\":\"znver3\"},\"broken\":null}';; *) exit 1;; esac\n";
    std::fs::write(bin.join("nix"), nix).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bin.join("nix"), mode).unwrap();
    let path = bin.to_str().unwrap().to_owned();
    let flake = desk.dir.path().join("flake");
    let desk = desk.with("PATH", &path);
    let words = desk.run(&["init", "--dry-run", "--flake", flake.to_str().unwrap()]).ended(0);
    assert!(words.contains("ok    nix (Nix) 2.34.8"), "{words}");
    assert!(words.contains("tiger (x86_64-linux, znver3)"), "{words}");
    assert!(words.contains("features = [\"gccarch-znver3\"]"), "{words}");
}
