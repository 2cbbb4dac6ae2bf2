//! Every rule of the dead-man, on an uptime that the test sets.

use std::fs;

use nix_broker::provider::ec2::boot::ready::State;
use nix_broker::provider::ec2::boot::user_data::DEAD_MAN;

use crate::machine::{Machine, SHELLS, printed};

/// A process of a build, as its users and their group make it.
const BUILD: (u32, u32, u32) = (4711, 30001, 30000);

/// On both shells, a machine whose dead-man took its first look at an uptime of 10 s.
fn machines() -> impl Iterator<Item = Machine> {
    SHELLS.into_iter().map(|shell| {
        let machine = Machine::new(shell);
        machine.write("run/nix-broker/dead-man.sh", DEAD_MAN);
        machine.write("run/nix-broker/limits", "lease=900\nlease-busy=3600\nidle=1200\nhard=28800\n");
        assert!(!is_off(&machine, 10));
        machine
    })
}

/// One look at this uptime, and what it called.
fn look(machine: &Machine, uptime: u64) -> Vec<String> {
    machine.set_uptime(uptime);
    let output =
        machine.command(machine.shell).arg(machine.path("run/nix-broker/dead-man.sh")).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    machine.calls()
}

/// The same, on a machine that has looked every 30 s until then.
fn tick(machine: &Machine, uptime: u64) -> Vec<String> {
    machine.write("run/nix-broker/looked_at", &uptime.saturating_sub(30).to_string());
    look(machine, uptime)
}

fn is_off(machine: &Machine, uptime: u64) -> bool {
    let calls = tick(machine, uptime);
    let off = calls.iter().any(|call| call.starts_with("systemctl poweroff"));
    assert_eq!(off, machine.path("run/nix-broker/off").exists(), "{calls:?}");
    off
}

/// Looks again and again in a span, and at its end; all of them must leave it on.
fn stays(machine: &Machine, from: u64, to: u64) {
    for uptime in (from..to).step_by(240).chain([to]) {
        assert!(!is_off(machine, uptime), "{uptime}: {}", machine.read("run/nix-broker/off"));
    }
}

fn renew(machine: &Machine, uptime: u64) {
    machine.set_uptime(uptime);
    machine.beat(false);
}

fn build(machine: &Machine) {
    machine.process(BUILD.0, BUILD.1, BUILD.2);
}

fn reason(machine: &Machine) -> String {
    match machine.progress().state {
        State::Ending(reason) => reason,
        state @ (State::Booting | State::Ready { .. } | State::Failed(_)) => panic!("{state:?}"),
    }
}

#[test]
fn without_a_broker_an_idle_machine_ends_with_its_lease() {
    for machine in machines() {
        renew(&machine, 1000);
        build(&machine);
        assert!(!is_off(&machine, 1000));
        machine.end_process(BUILD.0);
        assert!(!is_off(&machine, 1895));
        assert!(is_off(&machine, 1901));
        assert_eq!(reason(&machine), "nothing was heard of the broker for 901 s, and nothing builds");
        assert!(machine.read("dev/console").starts_with("nix-broker: powering off: nothing was heard"));
    }
}

#[test]
fn a_machine_that_no_broker_ever_talks_to_ends_with_its_first_lease() {
    for machine in machines() {
        stays(&machine, 30, 900);
        assert!(is_off(&machine, 911));
    }
}

#[test]
fn a_build_may_outlive_its_broker_for_a_while() {
    for machine in machines() {
        renew(&machine, 1000);
        build(&machine);
        stays(&machine, 1020, 2290);
        stays(&machine, 2310, 4599);
        assert!(is_off(&machine, 4601));
        assert_eq!(reason(&machine), "nothing was heard of the broker for 3601 s");
    }
}

#[test]
fn a_broker_that_was_suspended_and_comes_back_finds_its_build() {
    for machine in machines() {
        renew(&machine, 1000);
        build(&machine);
        stays(&machine, 1020, 3400);
        renew(&machine, 3410);
        machine.end_process(BUILD.0);
        stays(&machine, 3420, 4300);
        assert!(is_off(&machine, 4311), "the new lease is over as well");
    }
}

#[test]
fn a_broker_that_renews_for_ever_and_builds_nothing_keeps_nothing() {
    for machine in machines() {
        for uptime in (30..1200).step_by(180) {
            renew(&machine, uptime);
            assert!(!is_off(&machine, uptime), "{uptime}");
        }
        renew(&machine, 1205);
        assert!(is_off(&machine, 1211));
        assert_eq!(reason(&machine), "nothing was built for 1201 s");
    }
}

#[test]
fn a_build_or_a_long_upload_begins_the_idle_time_anew() {
    for machine in machines() {
        renew(&machine, 1000);
        build(&machine);
        assert!(!is_off(&machine, 1000));
        machine.end_process(BUILD.0);
        for uptime in (1030..2190).step_by(180) {
            renew(&machine, uptime);
            assert!(!is_off(&machine, uptime), "{uptime}");
        }
        // Nothing builds, and the broker says that it is in use.
        machine.set_uptime(2190);
        machine.beat(true);
        for uptime in (2200..3380).step_by(180) {
            renew(&machine, uptime);
            assert!(!is_off(&machine, uptime), "{uptime}");
        }
        renew(&machine, 3385);
        assert!(is_off(&machine, 3391));
    }
}

#[test]
fn nothing_lives_longer_than_the_hard_limit() {
    for machine in machines() {
        build(&machine);
        for uptime in (30..28_800).step_by(2400) {
            renew(&machine, uptime);
            assert!(!is_off(&machine, uptime), "{uptime}");
        }
        renew(&machine, 28_799);
        assert!(!is_off(&machine, 28_799));
        assert!(is_off(&machine, 28_800));
        assert_eq!(reason(&machine), "it has been up for 28800 s, and 28800 s is the limit");
    }
}

#[test]
fn builds_are_seen_by_group_or_by_the_users_that_nix_allocates() {
    for machine in machines() {
        renew(&machine, 1000);
        stays(&machine, 1000, 1000);
        for (pid, uid, gid, counts) in [
            (50, 30001, 30000, true),
            (51, 872_415_232, 30000, true),
            (52, 872_415_232, 872_415_232, true),
            (53, 880_803_839, 880_803_839, true),
            (54, 0, 0, false),
            (55, 30000, 3000, false),
            (56, 300_000, 300_000, false),
            (57, 87_241_523, 87_241_523, false),
            (58, 1000, 100, false),
        ] {
            fs::remove_dir_all(machine.path("run/nix-broker")).unwrap();
            machine.write("run/nix-broker/dead-man.sh", DEAD_MAN);
            machine.process(pid, uid, gid);
            assert!(!is_off(&machine, 1000));
            assert_eq!(machine.path("run/nix-broker/busy_at").exists(), counts, "uid {uid} gid {gid}");
            machine.end_process(pid);
        }
        // Without the group only the others count.
        machine.write("etc/group", "root:x:0:\nnixbld-not:x:30000:\n");
        let _absent = fs::remove_file(machine.path("run/nix-broker/busy_at"));
        build(&machine);
        assert!(!is_off(&machine, 1010));
        assert!(!machine.path("run/nix-broker/busy_at").exists());
    }
}

#[test]
fn a_boot_begins_anew() {
    for machine in machines() {
        renew(&machine, 800);
        assert!(is_off(&machine, 28_800));
        machine.reboot();
        machine.write("run/nix-broker/dead-man.sh", DEAD_MAN);
        stays(&machine, 5, 895);
        assert!(is_off(&machine, 911));
    }
}

#[test]
fn hibernation_costs_neither_lease_nor_life() {
    for machine in machines() {
        renew(&machine, 1000);
        assert!(!is_off(&machine, 1010));
        // A night later, as CLOCK_BOOTTIME counts: the broker has a whole lease to find it again.
        assert!(look(&machine, 41_010).is_empty());
        stays(&machine, 41_040, 41_900);
        renew(&machine, 41_905);
        build(&machine);
        for uptime in (41_910..68_800).step_by(2400) {
            renew(&machine, uptime);
            assert!(!is_off(&machine, uptime), "{uptime}");
        }
        renew(&machine, 68_800);
        assert!(is_off(&machine, 40_000 + 28_800));
    }
    for machine in machines() {
        renew(&machine, 1000);
        assert!(!is_off(&machine, 1010));
        assert!(look(&machine, 41_010).is_empty());
        stays(&machine, 41_030, 41_900);
        assert!(is_off(&machine, 41_911), "nobody came");
    }
}

#[test]
fn what_is_broken_keeps_nothing_alive() {
    for text in ["", "soon", "-1", "99999999999999999999", "0x10", "010", "1 2", "$(touch hit)", "a\nb"] {
        for machine in machines() {
            for name in ["lease_at", "used_at", "busy_at", "armed_at", "looked_at", "asleep", "resumed_at"] {
                machine.write(&format!("run/nix-broker/{name}"), text);
            }
            let limits = ["lease", "lease-busy", "idle", "hard"].map(|name| format!("{name}={text}\n"));
            machine.write("run/nix-broker/limits", &limits.concat());
            assert!(!is_off(&machine, 1000), "{text}");
            assert!(!is_off(&machine, 1895), "{text}");
            assert!(is_off(&machine, 1901), "{text}");
            assert!(!machine.path("hit").exists());
        }
    }
    // A lease from the future, and limits of nothing.
    for machine in machines() {
        machine.write("run/nix-broker/lease_at", "999999999");
        machine.write("run/nix-broker/used_at", "999999999");
        machine.write("run/nix-broker/limits", "lease=0\nidle=0\nhard=0\nlease-busy=0\n");
        stays(&machine, 30, 900);
        assert!(is_off(&machine, 911));
    }
}

#[test]
fn the_limits_of_an_image_count_until_a_boot_brings_its_own() {
    for machine in machines() {
        fs::remove_file(machine.path("run/nix-broker/limits")).unwrap();
        machine.write("etc/nix-broker/limits", "# of the image\nlease=120\nidle=7200\n");
        stays(&machine, 30, 120);
        assert!(is_off(&machine, 131));
    }
    for machine in machines() {
        machine.write("etc/nix-broker/limits", "lease=120\n");
        stays(&machine, 30, 900);
    }
}

#[test]
fn a_shutdown_that_hangs_is_followed_by_rougher_ones() {
    for machine in machines() {
        assert_eq!(tick(&machine, 1000), ["systemctl poweroff"]);
        // A broker that comes back now comes too late.
        renew(&machine, 1010);
        assert_eq!(machine.beat(false).ending.unwrap(), reason(&machine));
        assert_eq!(tick(&machine, 2000), ["systemctl poweroff --force --force"]);
    }
    for machine in machines() {
        assert_eq!(tick(&machine, 1000), ["systemctl poweroff"]);
        assert_eq!(tick(&machine, 1030), ["systemctl poweroff"]);
        assert_eq!(tick(&machine, 1090), ["systemctl poweroff --force"]);
        assert_eq!(tick(&machine, 1180), ["systemctl poweroff --force --force"]);
    }
    for machine in machines() {
        machine.fail("systemctl", "bus: gone");
        assert_eq!(
            tick(&machine, 1000),
            ["systemctl poweroff", "systemctl poweroff --force", "systemctl poweroff --force --force"]
        );
        assert_eq!(machine.read("proc/sysrq-trigger"), "o\n");
    }
}

#[test]
fn a_machine_that_is_to_end_ends_even_if_the_broker_comes_back() {
    for machine in machines() {
        assert!(is_off(&machine, 1000));
        renew(&machine, 1010);
        assert!(is_off(&machine, 1030));
    }
}
