PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

# Large buffers on huge pages: a third off the time of a training step on CPU (glibc 2.35 or later; ignored elsewhere).
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

# The tests compile in a hurry (tests/conftest.py). The recordings and properties are held against XLA's defaults, too.
AS_USERS_DO := --xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true

SERVE := $(VENV)/serve.stamp

.PHONY: setup libtpu cuda demo live browser test test-long test-versions lint wheel bench

setup: $(VENV)/dev.stamp

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.txt constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) install -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/run.stamp
	$(PIP) install -c constraints.txt torch
	$(PIP) install -r requirements-dev.txt
	$(PIP) install --no-deps ltx-core==1.0.0
	touch $@

# Beside the packages, not among them: jax would look for a TPU. Tests that want it are skipped where it cannot be had.
$(VENV)/libtpu.stamp: requirements-pod.txt | $(BIN)/python
	$(PIP) install --target $(VENV)/libtpu --upgrade --no-deps -r requirements-pod.txt && touch $@ || true

libtpu: $(VENV)/libtpu.stamp

# CUDA's compilers, for programs of GPUs on a machine without any: 4.4 GB. Tests that want them are skipped without.
CUDA := .venv-cuda

$(CUDA)/cuda.stamp: requirements-cuda.txt
	"$$(.ci/find-python 3.12)" -m venv $(CUDA)
	$(CUDA)/bin/pip --disable-pip-version-check --quiet install -r requirements-cuda.txt
	touch $@

cuda: $(CUDA)/cuda.stamp

demo: $(VENV)/run.stamp
	$(BIN)/python -m omniforcing_jax demo

$(SERVE): $(VENV)/run.stamp
	$(PIP) install -c constraints.txt -e .[serve]
	touch $@

# A page at http://127.0.0.1:8188; make live LIVE="--port 9000 --state out/streams" has other flags.
live: $(SERVE)
	$(BIN)/python -m omniforcing_jax serve $(LIVE)

# For the tests of the page: Debian's Chromium, and a stock HLS player. Tests that lack one of them are skipped.
browser: $(VENV)/hls/package.json
	@command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium) \
	  >/dev/null 2>&1 || echo "no Chromium could be installed: tests of the page are skipped"

$(VENV)/hls/package.json: | $(BIN)/python
	@mkdir -p $(VENV)/hls
	@cd $(VENV)/hls && npm pack --silent hls.js@1.7.4 && tar -xzf hls.js-1.7.4.tgz --strip-components 1 2>/dev/null \
	  || echo "no hls.js could be had: its test is skipped"

test: $(VENV)/dev.stamp $(VENV)/libtpu.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/dev.stamp $(VENV)/libtpu.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long
	XLA_FLAGS="$(AS_USERS_DO)" $(BIN)/python -m pytest -n 2 --dist loadfile tests/golden tests/properties

# Python 3.12 and 3.13, each with the newest jax that pyproject.toml allows, in environments of their own.
test-versions:
	.ci/test-versions

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

wheel: $(VENV)/dev.stamp
	rm -rf build
	$(PIP) wheel --no-deps --wheel-dir out/wheel .

bench: $(VENV)/run.stamp
	$(BIN)/python -m omniforcing_jax bench stream --blocks 600 --json out/bench.json
