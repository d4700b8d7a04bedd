# With only Python and make: `make demo` builds a real model for four targets, `make test` runs the tests.
# `make test-gpu`, on Debian, asks LiteRT's GPU runtime on a software adapter too.

FITS := import sys; sys.exit(not (3, 10, 12) <= sys.version_info[:3] < (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.10 python3; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := calibration device_tests export pipeline targets
READY := $(VENV)/.ready
TORCH := $(VENV)/.torch
GPU := $(VENV)/gpu
SWIFTSHADER := $(abspath $(GPU))/swiftshader/usr/lib/chromium

.PHONY: demo test test-gpu firmware-tools check lint types clean

demo: $(READY)
	$(BIN)/edgebuild demo

test: $(TORCH)
	$(BIN)/python -m pytest

test-gpu: $(READY)
	@if $(MAKE) --no-print-directory $(GPU)/.ready; then \
		EDGEBUILD_LITERT=$(abspath $(GPU))/bin/python LD_LIBRARY_PATH=$(SWIFTSHADER) \
		VK_ICD_FILENAMES=$(SWIFTSHADER)/vk_swiftshader_icd.json $(BIN)/python -m pytest -m gpu_runtime tests/test_targets_gpu.py; \
	else echo "LiteRT or SwiftShader can't be had here: the tests that ask a GPU runtime did not run"; fi

# Debian's cross compiler and QEMU, for the tests that link a firmware package and run it.
firmware-tools:
	apt-get --quiet=2 update
	apt-get --quiet=2 --yes install gcc-arm-none-eabi libnewlib-arm-none-eabi libstdc++-arm-none-eabi-newlib qemu-system-arm

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

clean:
	rm -rf $(VENV) build edgebuild-demo
