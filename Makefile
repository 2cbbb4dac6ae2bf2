# The commands of this repository. Each installs what it needs on a Debian machine with Rust and root.
#
#   make demo    the whole product on this machine, narrated: a flake, an ordinary user, builders on demand
#   make test    everything CI runs: format, lints, licences, unit tests, and the real thing on three versions of Nix
#   make bench   the same work with stock Nix and with us over links of chosen delay; tests/bench/run.sh has the knobs
#   make explore   the properties of scheduler and simulator, on CASES=20000 cases that nobody has seen yet
#   make micro   what scheduler, codecs and archives cost by themselves (Criterion)
#   make simulate  what the broker decides, against fixed fleets and first come, first served, on simulated time
#   make clean   ends every test host; `make distclean` also deletes the Debian roots and the build

RELEASES := bookworm trixie forky
LAB      := tests/lab

.PHONY: demo test format lint licences unit real explore bench micro simulate clean distclean

demo:
	$(LAB)/demo.sh

test: format lint licences unit real
	@echo "make test: all of it passed"

format:
	cargo fmt --check

lint:
	for script in $(LAB)/*.sh tests/bench/*.sh contrib/*.sh; do bash -n $$script || exit 1; done
	cargo clippy --locked --all-targets -- --deny warnings
	cargo clippy --locked --all-targets --no-default-features -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --no-deps --document-private-items --quiet

licences:
	$(LAB)/cargo-deny.sh

# Each run tries the same random cases, so that what fails is the change at hand; `make explore` looks for new ones, and
# those that ever failed are kept in the *.seeds files.
unit: export PROPTEST_RNG_SEED = 1
unit:
	$(LAB)/packages.sh
	$(LAB)/moto.sh >/dev/null
	cargo test --locked --lib --bins --test layers --test cli --test hook_conversation --test scheduler_scripts \
		--test worker_golden --test scheduler_scale --test provider_local --test user_data --test builder_setup \
		--test ec2_api --test ec2_cli --test iam_policy --test simulate
	cargo test --locked --test ec2_schedules

real:
	$(LAB)/packages.sh
	$(LAB)/roots.sh $(RELEASES)
	$(LAB)/check.sh $(RELEASES)
	$(LAB)/nix-files.sh
	$(LAB)/moto.sh
	cargo test --locked --test worker_live --test user_data_live --test end_to_end --test operations --test faults \
		--test transfers --test direct --test economics --test nixos --test run --test install --test activation --test readme --test faces \
		-- --test-threads=2
	# Its tests mostly wait.
	cargo test --locked --test ec2_end_to_end -- --test-threads=4

explore:
	PROPTEST_CASES=$${CASES:-20000} cargo test --locked --config 'profile.test.package.nix-broker.opt-level=2' \
		--lib --test simulate properties

bench:
	$(LAB)/packages.sh
	$(LAB)/roots.sh $${RELEASE:-forky}
	cargo build --locked --release --bins
	tests/bench/run.sh

micro:
	cd tests/bench/micro && CARGO_TARGET_DIR=$(CURDIR)/target/micro cargo bench

simulate:
	cargo build --locked --bin broker
	tests/bench/simulate.sh

clean:
	$(LAB)/host.sh down --all

distclean: clean
	rm -rf "$${NIX_BROKER_LAB:-/var/cache/nix-broker-lab}" target
