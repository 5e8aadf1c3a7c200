# The two commands of the README are `make demo` and `make test`. Each installs what it needs (scripts/install-deps.sh)
# and runs alone on a bare Debian 12 with Rust.
.PHONY: demo test bench build fuzz-cpu boots stress lab clean

SHELL := /bin/bash
GUEST := debian-6.1-cloud-amd64
CACHE := $(or $(VIREO_GUEST_CACHE),guests/cache)
VIREO := $(or $(CARGO_TARGET_DIR),target)/release/vireo

build:
	cargo build --release --quiet -p vireo-cli

# Boots an unmodified Debian kernel from a VHDX and adds a disk while it runs; on a terminal to a shell, else a scripted visit.
demo:
	scripts/install-deps.sh demo
	$(MAKE) --no-print-directory build
	guests/build.sh $(GUEST)-disk
	scripts/demo.sh $(VIREO) $(CACHE)/$(GUEST)-disk

# Everything that has to pass.
test:
	scripts/test.sh

# Side by side with QEMU TCG; prints ratios.
bench:
	scripts/install-deps.sh bench
	$(MAKE) --no-print-directory build
	guests/build.sh $(GUEST)
	cargo run --release --quiet -p vireo-bench -- --vireo $(VIREO) --guest $(CACHE)/$(GUEST)

# The programs of bench/cpu natively, in ours and in QEMU TCG; real programs of Debian and a boot with systemd in ours and
# in TCG; builds and pipes on 4 processors in ours and in TCG. ROUNDS of each, ONLY=name,name,… of them, ENGINE of ours.
.PHONY: bench-cpu bench-programs bench-parallel
ROUNDS := 3
ENGINE := soft
bench-cpu: SET := bench
bench-programs: SET := programs
bench-programs: FURTHER := $(GUEST)-systemd
bench-programs: OPTIONS := --systemd $(CACHE)/$(GUEST)-systemd
bench-parallel: SET := parallel
bench-parallel: OPTIONS := --repeats 1
bench-cpu bench-programs bench-parallel:
	scripts/install-deps.sh bench
	$(MAKE) --no-print-directory build
	guests/build.sh $(GUEST)-$(SET) $(FURTHER)
	cargo run --release --quiet -p vireo-bench -- $(@:bench-%=%) --vireo $(VIREO) --guest $(CACHE)/$(GUEST)-$(SET) \
		--engine $(ENGINE) --rounds $(ROUNDS) $(OPTIONS) $(if $(ONLY),--only $(ONLY))

# Disks (bench/io): our path in this process, then fio in ours, in QEMU TCG and on the host. ONLY=null,file,vhdx,guest.
.PHONY: bench-io
bench-io:
	scripts/install-deps.sh bench io
	$(MAKE) --no-print-directory build
	guests/build.sh $(GUEST)-disk
	cargo run --release --quiet -p vireo-bench -- io --vireo $(VIREO) --guest $(CACHE)/$(GUEST)-disk \
		--engine $(ENGINE) --rounds $(ROUNDS) $(if $(ONLY),--only $(ONLY))

# Networks (bench/net): the switch alone, with policy, from worker to worker beside the kernel's bridge; guests beside TCG.
# ONLY=alone,policy,pair,host,guest.
.PHONY: bench-net
bench-net:
	scripts/install-deps.sh bench net
	$(MAKE) --no-print-directory build
	guests/build.sh $(GUEST)-net
	cargo run --release --quiet -p vireo-bench-net -- --vireo $(VIREO) --guest $(CACHE)/$(GUEST)-net \
		--rounds $(ROUNDS) $(if $(ONLY),--only $(ONLY))

# Designs of the translator's TLB check on compiled code (bench/tlb-check).
.PHONY: bench-tlb
bench-tlb:
	scripts/install-deps.sh tlb
	bench/tlb-check/measure.py --rounds $(ROUNDS)

# Long runs, not part of `make test`.
# Linux's own drivers of virtio and IDE, while state is saved and restored and the machine reset under them.
.PHONY: drivers
drivers:
	guests/build.sh $(GUEST) debian-6.1-686-pae
	cargo test --release -p vireo-virtio --test linux
	cargo test --release -p vireo-ide --test linux
	cargo test --release -p vireo-nic --test linux

# The picture of a graphical boot (Debian's plymouth): target/splash.png, for people to look at.
.PHONY: splash
splash:
	guests/build.sh $(GUEST)-splash
	cargo test --package vireo-tests --test screen -- --ignored --nocapture the_picture_of_a_graphical_boot_is_seen

# Random instructions on the real CPU and on the software engine, compared bit for bit.
CASES := 10000000
fuzz-cpu:
	cargo run --release --quiet -p vireo-soft --example fuzz-cpu -- $(CASES)

# What guests and images reach, fuzzed with coverage (fuzz/): each of TARGETS, or all, for SECONDS_EACH.
.PHONY: fuzz
SECONDS_EACH := 60
TARGETS :=
fuzz:
	scripts/install-deps.sh fuzz
	scripts/fuzz.sh $(SECONDS_EACH) $(TARGETS)

# Interpreter and translator in lock step over whole boots: one of N translations, and chains of them.
.PHONY: lockstep
N := 1
LOCKSTEP := $(GUEST) debian-6.1-686-pae
lockstep: build
	scripts/install-deps.sh demo
	scripts/lockstep.sh $(VIREO) $(N) $(or $(GUESTS),$(LOCKSTEP))

# N boots in a row of each kernel, or of those in GUESTS.
BOOTS := 100
boots: build
	scripts/boots.sh $(VIREO) $(BOOTS) $(GUESTS)

# Guests with a disk, and their tests of disks, in QEMU: all of them, or those in GUESTS.
.PHONY: check-guests
check-guests:
	scripts/install-deps.sh test
	guests/check.sh $(GUESTS)

# Disks of guests: all four kernels on VHD, VHDX and chains, which others look at then; CUTS power cuts; CYCLES of a disk
# that comes and goes while another is at work.
.PHONY: disks power-cuts hotplug-cycles
CUTS := 100
CYCLES := 200
disks: build
	scripts/disks.sh $(VIREO) $(GUESTS)
power-cuts: build
	scripts/power-cuts.sh $(VIREO) $(CUTS)
hotplug-cycles: build
	scripts/hotplug-cycles.sh $(VIREO) $(CYCLES)

# CYCLES of a network adapter that comes and goes while it is busy, and its neighbour is at work.
.PHONY: nic-cycles
nic-cycles: build
	scripts/nic-cycles.sh $(VIREO) $(CYCLES) $(or $(GUESTS),$(GUEST)-net)

# stress-ng --verify in the guest, 2 minutes on 4 vCPUs.
stress: build
	scripts/stress.sh $(VIREO)

# The KVM engine in a lab host with a genuine /dev/kvm.
lab: build
	scripts/lab.sh $(VIREO)

clean:
	cargo clean
