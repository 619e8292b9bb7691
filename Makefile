# Godwit. `make demo` shows it, `make test` proves it, `make bench` measures it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Debian packages: what the build, the guest images and the lab need; what only the benchmarks need.
PACKAGES := binutils busybox-static cpio e2fsprogs gcc iproute2 kmod libc6-dev mmdebstrap \
            qemu-system-x86 qemu-utils xz-utils zstd
BENCH_PACKAGES := ganeti-htools iperf3 xfsprogs

# The workspace's oldest compiler.
RUST := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s $$'\t'

# Debian's own compiler is too old, and which way somebody keeps theirs is for them to choose.
.PHONY: rust
rust:
	@have=$$(rustc --version 2>/dev/null | cut -d' ' -f2 || true); \
	[ "$$(printf '%s\n' $(RUST) "$$have" | sort -V | head -1)" = $(RUST) ] || { \
	echo "Rust $(RUST) or later is needed, here is $${have:-none}: install it from https://rustup.rs, or run" \
		"\`rustup update stable\`" >&2; exit 1; }

.PHONY: packages
packages: ## Install the Debian packages that are missing; the images' recipes need apt's lists
	@$(call install,$(PACKAGES))
	@apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || $(AS_ROOT) apt-get update -qq

.PHONY: bench-packages
bench-packages: packages
	@$(call install,$(BENCH_PACKAGES))

# Asks dpkg first, so that a machine that has everything needs neither root nor a mirror. Asks again
# afterwards: apt may remove a package that came in another version (a backport's qemu-utils makes way for
# Debian's qemu-system-x86), and then it is missing now.
missing = $$(for p in $(1); do dpkg-query -W -f '$${Status}\n' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done)
install = for round in 1 2 3; do missing="$(missing)"; \
	[ -n "$$missing" ] || break; \
	[ $$round != 3 ] || { echo "apt-get cannot install all of these together:" $$missing >&2; exit 1; }; \
	echo "installing:" $$missing; \
	$(AS_ROOT) apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive $(AS_ROOT) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; done

.PHONY: build
build: rust packages ## Build everything that ships, in the profile that ships
	cargo build --release --workspace --bins

PREFIX ?= /usr/local
BIN = $(DESTDIR)$(PREFIX)/bin
SHARE = $(DESTDIR)$(PREFIX)/share
ETC = $(DESTDIR)/etc

.PHONY: install
install: ## Put programs, systemd unit and completions in place, after `make build` (DESTDIR, PREFIX)
	install -d $(BIN) $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions \
		$(SHARE)/fish/vendor_completions.d $(ETC)/godwit $(ETC)/systemd/system
	install -m 755 $(addprefix target/release/,vmm cluster-agent godwit godwit-store) $(BIN)
	sed 's,/usr/local/bin,$(PREFIX)/bin,' cluster-agent/systemd/cluster-agent.service \
		> $(ETC)/systemd/system/cluster-agent.service
	[ -e $(ETC)/godwit/agent.env ] || install -m 644 cluster-agent/systemd/agent.env $(ETC)/godwit
	install -d $(SHARE)/doc/godwit
	install -m 644 cluster-agent/systemd/datastore.conf docs/operations.md $(SHARE)/doc/godwit
	target/release/godwit completions bash > $(SHARE)/bash-completion/completions/godwit
	target/release/godwit completions zsh > $(SHARE)/zsh/site-functions/_godwit
	target/release/godwit completions fish > $(SHARE)/fish/vendor_completions.d/godwit.fish

.PHONY: images
images: packages ## Make the guests' images, from Debian packages
	guest-images/linux/build all

.PHONY: demo
demo: rust packages ## Show it: a cluster of three hosts in the lab, a guest, a power cut
	cargo run --release -p e2e --bin demo

# Each test that this machine cannot run adds a line to it (tests/ground/src/skip.rs).
export GODWIT_SKIPPED := $(CURDIR)/build/skipped

# The images come over the network while the processor compiles.
.PHONY: test
test: rust packages ## Prove it: format, lints, unit and property tests, simulator, lab
	cargo fmt --all --check
	mkdir -p build; rm -f $(GODWIT_SKIPPED); guest-images/linux/build all > build/images.log 2>&1 & images=$$!; \
	cargo clippy --release --workspace --all-targets -- -D warnings && \
	cargo test --release --workspace --exclude e2e && \
	{ wait $$images || { cat build/images.log; exit 1; }; }
	cargo test --release -p e2e
	@$(MAKE) --no-print-directory skipped

.PHONY: skipped
skipped: ## Tell again what the last `make test` could not run here
	@if [ -e $(GODWIT_SKIPPED) ]; then sort -uo $(GODWIT_SKIPPED) $(GODWIT_SKIPPED); \
		echo "SKIPPED here: $$(wc -l < $(GODWIT_SKIPPED)) tests"; sed 's/^/  /' $(GODWIT_SKIPPED); \
	else echo "no test was skipped"; fi

.PHONY: bench
bench: rust bench-packages ## Measure it, beside its peers, in one run; ten minutes, half of them fio in the lab
	cargo build --release -p vmm -p bench -p shared-storage -p sim
	target/release/bench all
	target/release/sim drs-bench

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf target build
