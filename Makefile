# With only Python and make: `make demo` builds a real model for four targets, `make test` runs the tests.
# `make test-gpu`, on Debian, asks LiteRT's GPU runtime on a software adapter too; `make test-arm` an ARM device in QEMU.

FITS := import sys; sys.exit(not (3, 10, 12) <= sys.version_info[:3] < (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.10 python3; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := calibration device_tests export pipeline targets
READY := $(VENV)/.ready
TORCH := $(VENV)/.torch
GPU := $(VENV)/gpu
ARM := $(VENV)/arm
SWIFTSHADER := $(abspath $(GPU))/swiftshader/usr/lib/chromium

.PHONY: demo test test-gpu test-arm test-tools check lint types clean

demo: $(READY)
	$(BIN)/edgebuild demo

# Two processes, each with whole files of tests, whose fixtures are then made once. A plain `pytest` runs them in one.
test: $(TORCH)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-gpu: $(READY)
	@if $(MAKE) --no-print-directory $(GPU)/.ready; then \
		EDGEBUILD_LITERT=$(abspath $(GPU))/bin/python LD_LIBRARY_PATH=$(SWIFTSHADER) \
		VK_ICD_FILENAMES=$(SWIFTSHADER)/vk_swiftshader_icd.json $(BIN)/python -m pytest -m gpu_runtime tests/test_targets_gpu.py; \
	else echo "LiteRT or SwiftShader can't be had here: the tests that ask a GPU runtime did not run"; fi

test-arm: $(READY)
	@if $(MAKE) --no-print-directory $(ARM)/.ready; then \
		EDGEBUILD_ARM_ROOT=$(abspath $(ARM))/root $(BIN)/python -m pytest -m arm_device tests/test_device_arm.py; \
	else echo "an ARM root, or what runs it, can't be had here: the tests that ask an ARM device did not run"; fi

# Debian's cross compiler and QEMU, for tests that run a firmware package; ssh, adb and what devices have, for theirs.
test-tools:
	apt-get --quiet=2 update
	apt-get --quiet=2 --yes --no-install-recommends install adb busybox cmake gcc-arm-none-eabi \
		libnewlib-arm-none-eabi libstdc++-arm-none-eabi-newlib openssh-client openssh-server qemu-system-arm valgrind

check: lint types

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows no editable install's finder: a link shows it the folders as the package they install as.
types: $(READY)
	MYPYPATH=$(VENV)/types $(BIN)/mypy $(PACKAGES:%=-p edgebuild.%)
	MYPYPATH=$(VENV)/types:tests:benchmarks $(BIN)/mypy tests benchmarks

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "edgebuild needs Python 3.10.12 up to 3.11 (tflite-runtime has no later wheel); set PYTHON="; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,mcu,ethosu,distributed]'
	$(BIN)/python -m compileall -q $(PACKAGES)
	mkdir -p $(VENV)/types && ln -sfn ../.. $(VENV)/types/edgebuild
	@touch $@

# Only tests of PyTorch exports need it, and some package indexes give a build of several gigabytes.
$(TORCH): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[torch]'
	@touch $@

# In an environment of its own, since its pins collide with ours; Debian's chromium-common brings SwiftShader and a loader.
$(GPU)/.ready: $(READY)
	$(PYTHON) -m venv $(GPU)
	$(GPU)/bin/python -m pip install --quiet --disable-pip-version-check ai-edge-litert==2.3.0
	cd $(GPU) && apt-get --quiet=2 update && apt-get --quiet=2 download chromium-common
	cd $(GPU) && dpkg -x chromium-common_*.deb swiftshader && rm chromium-common_*.deb
	@touch $@

# Unpacked and never configured, which takes a machine of its own kind: Python and a shell run as they are. Debian 12's
# Python is the last that tflite-runtime has wheels for.
$(ARM)/.ready:
	apt-get --quiet=2 update
	apt-get --quiet=2 --yes --no-install-recommends install debootstrap openssh-client openssh-server qemu-user-static
	rm -rf $(ARM) && mkdir -p $(ARM)
	debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm $(ARM)/root \
		$$(apt-get indextargets --format '$$(REPO_URI)' | head -n 1) >$(ARM)/log || { tail $(ARM)/log; exit 1; }
	for package in $(ARM)/root/var/cache/apt/archives/*.deb; do dpkg-deb -x $$package $(ARM)/root || exit 1; done
	@touch $@

clean:
	rm -rf $(VENV) build edgebuild-demo
