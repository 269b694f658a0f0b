# Everything a person needs: `make demo` shows it, `make test` proves it.
# The Python packages go into .venv; Debian packages only where apt is there (root, or sudo without a password).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PVPATCH := $(BIN)/pvpatch
WORK   := build/demo
JOBS   ?= 2
BUDGET ?= 60

# Debian packages that the tests use besides Python: an independent machine, a compiler for both widths, a debugger.
TEST_PACKAGES := qemu-system-x86 gcc gcc-multilib binutils gdb
SETUP_PACKAGES := python3-venv

.PHONY: help setup setup-dev apt-setup apt-test demo test lint bench campaign matrix oracle oracle-pc samples docs clean

help:
	@echo "make demo    patch a real kernel (GNU Mach) and run it on two hypervisors"
	@echo "make test    all tests, with real guests where apt can fetch them"
	@echo "make lint    ruff and mypy --strict"
	@echo "make bench   the measured figures, each beside a peer from the same run"
	@echo "make matrix  every guest on every backend"
	@echo "make campaign BUDGET=SECONDS SEED=NUMBER  mutated images, forged patched files, hostile guests"
	@echo "make oracle  the Xen model against real Xen 4.17, verdict by verdict"
	@echo "make oracle-pc  the PC's sample under QEMU and here, patched and unpatched"
	@echo "make fuzz    random kernels, unpatched against patched, for BUDGET seconds; SEED=n repeats"
	@echo "make samples rebuild the sample kernels with gcc and as"
	@echo "make docs    regenerate the ABI reference and the other generated pages"

define apt_install
	@if command -v apt-get >/dev/null 2>&1; then \
	  missing=""; for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	  if [ -n "$$missing" ]; then \
	    as_root=""; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; \
	    echo "installing Debian packages:$$missing"; \
	    $$as_root apt-get update -q >/dev/null 2>&1; \
	    DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -y -q --no-install-recommends $$missing >/dev/null 2>&1 \
	      || echo "could not install:$$missing (the tests that need them say so)"; \
	  fi; \
	else echo "no apt here: tests that need$$(printf ' %s' $(1)) say so"; fi
endef

apt-setup:
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || $(MAKE) --no-print-directory apt-venv

.PHONY: apt-venv
apt-venv:
	$(call apt_install,$(SETUP_PACKAGES))

apt-test:
	$(call apt_install,$(TEST_PACKAGES))

$(VENV)/.installed: pyproject.toml | apt-setup
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pvpatch into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	@echo "installing the development tools into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

demo: setup
	@PVPATCH=$(PVPATCH) WORK=$(WORK) sh docs/demo.sh

test: setup-dev apt-test
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

lint: setup-dev
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/deptry .

bench: setup-dev apt-test
	@$(BIN)/python -m tests.bench

matrix: setup-dev
	@$(BIN)/python -m tests.matrix

campaign: setup-dev
	@$(BIN)/python -m tests.campaign $(or $(BUDGET),60) $(or $(SEED),1)

oracle: setup-dev apt-test
	@$(BIN)/python -m tests.oracle

oracle-pc: setup-dev apt-test
	@$(BIN)/python -m pytest tests/samples tests/patch/test_on_qemu.py tests/backends/test_patched_guests.py -k pc-x86_64

fuzz: setup-dev apt-test
	@$(BIN)/python -m tests.fuzz --budget $(BUDGET) $(if $(SEED),--seed $(SEED))

samples:
	@$(MAKE) -C samples

docs: setup
	@$(PVPATCH) abi reference -o docs/abi.md
	@$(PVPATCH) abi comparison -o docs/one-abi-tables.md

clean:
	@rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache
