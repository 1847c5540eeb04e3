# Everything starts from a machine with Rust and Python >= 3.11; `make help` lists it.
# The virtual environment is .venv; PYTHON=/path/to/python3 chooses its interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?=
export PYTHON
# System programs that ordinary users' paths leave out: ip, dpdk-testpmd.
export PATH := $(PATH):/usr/sbin:/sbin

BIN := .venv/bin
# One set of stamps for each interpreter asked for: another PYTHON makes another .venv.
STAMPS := .venv/stamps/$(or $(subst /,_,$(PYTHON)),default)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
export PIP_ROOT_USER_ACTION := ignore

# The binding is a module that Python loads: it links no libpython (pyo3's guide,
# "Building and distribution"). The interpreter only tells pyo3 its version.
export PYO3_BUILD_EXTENSION_MODULE := 1
CARGO := PYO3_PYTHON=$(abspath $(BIN)/python) cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

# The programs beside the tests use the same peers.
TOOLS := PYTHONPATH=$(CURDIR)/tools:$(CURDIR)/tests

RUST := Cargo.toml Cargo.lock pyproject.toml $(shell find rust/core rust/python -name '*.rs' -o -name '*.toml')

# Flags for pytest, as in `make test ARGS='-k slirp'`.
ARGS ?=
# Processes that share the Python tests; most tests wait for a QEMU or a peer. 0: in one, in order.
JOBS ?= 2

##@ Use

.PHONY: demo
demo: setup-demo $(STAMPS)/extension ## The main job: a lease, ARP and ping through a virtio-net NIC without a VM
	$(BIN)/virtnic demo

.PHONY: build
build: setup-demo $(STAMPS)/extension ## Only build: .venv/bin/virtnic works afterwards

##@ Check

.PHONY: test
test: setup-test $(STAMPS)/extension $(STAMPS)/tools ## All tests: Rust, then Python against real peers
	$(CARGO) test --workspace --all-features --quiet
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=$(TARGET)/loom $(CARGO) test -p virtnic --lib --quiet loom
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

# As on a machine that is busy otherwise: nothing may depend on who runs first, or soon. The loops
# end with the tests, however those do.
LOOPS ?= 4
.PHONY: test-under-load
test-under-load: setup-test $(STAMPS)/extension $(STAMPS)/tools ## The same beside LOOPS=4 busy loops, for what passes by luck alone
	$(BIN)/python tools/load.py $(LOOPS) $(MAKE) test ARGS='$(ARGS)'

.PHONY: lint
lint: setup-lint $(STAMPS)/extension $(STAMPS)/tools ## Formatting, lints, types, stubs, documentation; warnings are errors
	cargo fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --all-features --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy --strict
	$(BIN)/python -m mypy.stubtest virtnic._native

.PHONY: format
format: $(STAMPS)/tools ## Format the sources
	cargo fmt --all
	$(BIN)/ruff format --quiet
	$(BIN)/ruff check --fix --quiet

.PHONY: docs
docs: $(STAMPS)/extension ## Write docs/features.md, docs/netdevs.md and the docstrings of the stub from the sources
	$(BIN)/python tools/features_page.py
	$(BIN)/python tools/netdevs_page.py
	$(BIN)/python tools/stub_docstrings.py

##@ Longer

# Without a seed, another one each time; it is printed.
SECONDS ?= 600
SEED ?=

.PHONY: soak
soak: setup-test $(STAMPS)/extension $(STAMPS)/tools ## Numbered traffic while QEMUs, backends and links die: SECONDS=600 SEED=7; ARGS=--steady: memory
	$(TOOLS) $(BIN)/python -m soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: bench
bench: setup-test $(STAMPS)/extension $(STAMPS)/tools ## Benchmarks; prints them and writes build/bench.json
	$(TOOLS) $(BIN)/python -m benchmarks $(ARGS)

.PHONY: fuzz
fuzz: SECONDS ?= 60
fuzz: setup-test $(STAMPS)/extension $(STAMPS)/tools ## Fuzz what a hostile peer may send, SECONDS=60 for each target; writes build/fuzz
	FUZZ_PYTHON=$(BIN)/python .ci/fuzz $(SECONDS) $(TARGETS)

.PHONY: captures
captures: setup-test $(STAMPS)/extension $(STAMPS)/tools ## Read tcpdump's test captures as libpcap does, and replay them into a TAP
	.ci/captures .cache/captures
	$(TOOLS) $(BIN)/python -m captures --least 400 .cache/captures

.PHONY: matrix
matrix: setup-matrix $(STAMPS)/extension $(STAMPS)/tools $(STAMPS)/tox ## One table: tests on QEMU 5.2, 7.2, 10.0, 11.1 and on each Python; writes build/matrix.json
	$(TOOLS) $(BIN)/python -m matrix $(ARGS)

.PHONY: conformance
conformance: $(STAMPS)/extension $(STAMPS)/tools ## docs/conformance.md from runs of testpmd and OVS-DPDK: look at each wrong row by hand before it is published
	$(BIN)/python tools/conformance.py

.PHONY: vm
vm: setup-vm $(STAMPS)/extension $(STAMPS)/tools ## tests/vm in a small VM with vhost-net and vDPA; ARGS='-- COMMAND' runs that instead
	$(TOOLS) $(BIN)/python -m vm $(ARGS)

.PHONY: containers
containers: setup-containers $(STAMPS)/extension $(STAMPS)/tools ## Program, QEMU and backend in containers with a Debian root each
	$(TOOLS) $(BIN)/python tools/containers $(ARGS)

.PHONY: site
site: setup-site $(STAMPS)/extension $(STAMPS)/site ## The documentation as a site, in build/site/html; ARGS=--look: pictures of it by Chromium
	$(TOOLS) $(BIN)/python -m website $(ARGS)

.PHONY: wheels
wheels: setup-lint $(STAMPS)/wheels ## Wheels for x86_64 and aarch64, glibc and musl, stable ABI and free-threaded, checked: in dist/
	$(TOOLS) $(BIN)/python -m wheels $(ARGS)

.PHONY: wheels-test
wheels-test: setup-matrix $(STAMPS)/wheels ## Install what is in dist/ in bare Debian systems, as an ordinary user, and send a ping
	$(TOOLS) $(BIN)/python -m wheels --no-build --try $(ARGS)

##@ House

.PHONY: clean
clean: ## Remove everything that was built or installed here
	rm -rf .venv .tox .cache build dist target .mypy_cache .ruff_cache .pytest_cache
	rm -f python/virtnic/_native*.so
	find python tests tools -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- Set-up: each step does nothing when nothing changed --------------------------

.PHONY: setup-demo setup-lint setup-test setup-vm setup-matrix setup-containers setup-site
setup-demo:
	@.ci/system qemu hugepages
setup-lint:
	@{ cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1 \
		|| rustup component add rustfmt clippy
setup-test:
	@.ci/system qemu test vm hugepages
setup-vm:
	@.ci/system qemu test vm
setup-matrix:
	@.ci/system qemu test matrix hugepages
setup-site:
	@.ci/system qemu browser
setup-containers:
	@.ci/system qemu test matrix hugepages

$(STAMPS)/venv: pyproject.toml
	@.ci/system build
	@.ci/venv
	$(PIP) --upgrade 'pip>=25.1' 'maturin>=1.8,<2'
	@mkdir -p $(@D) && touch $@

# An editable install: the Python sources are used in place, the extension is put
# beside them, in release mode.
$(STAMPS)/extension: $(STAMPS)/venv $(RUST)
	PIP_QUIET=1 VIRTUAL_ENV=$(abspath .venv) $(BIN)/maturin develop --release --quiet --extras cli
	@touch $@

$(STAMPS)/tools: $(STAMPS)/venv
	$(PIP) --group test --group lint
	@touch $@

$(STAMPS)/tox: $(STAMPS)/venv
	$(PIP) --group matrix
	@touch $@

$(STAMPS)/site: $(STAMPS)/venv
	$(PIP) --group site
	@touch $@

$(STAMPS)/wheels: $(STAMPS)/venv
	$(PIP) --group wheels
	@touch $@
