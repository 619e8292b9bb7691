# Godwit. `make demo` shows it, `make test` proves it, `make bench` measures it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Debian packages: what the build, the guest images and the lab need; what only the benchmarks need.
PACKAGES := gcc make busybox-static cpio e2fsprogs fdisk iproute2 kmod mmdebstrap \
            qemu-system-x86 qemu-utils xz-utils zstd
BENCH_PACKAGES := ganeti-htools iperf3

AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s $$'\t'

.PHONY: packages
packages: ## Install the Debian packages that are missing
	@$(call install,$(PACKAGES))

.PHONY: bench-packages
bench-packages: packages
	@$(call install,$(BENCH_PACKAGES))

# Asks dpkg first, so that a machine that has everything needs neither root nor a mirror.
install = missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	[ -z "$$missing" ] || { echo "installing:" $$missing; \
	$(AS_ROOT) apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive $(AS_ROOT) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }

.PHONY: build
build: packages ## Build everything that ships, in the profile that ships
	cargo build --release --workspace --bins

.PHONY: lint
lint: packages
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf target build
