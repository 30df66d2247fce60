# Every target sets itself up in .venv: no step to do by hand before it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := CMakeLists.txt pyproject.toml constraints.txt $(wildcard csrc/*)

.PHONY: sample test test-slow lint build bench report report-fresh gpu-build test-gpu bench-gpu clean

sample: build
	$(BIN)/edm-engine sample --model fashion-mnist --seeds 0-63 --class 0-9 --steps 18 --S-churn 0 --out out/ --grid

test: lint
	# A process a core, each of one thread: threads that share a core wait for each other.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# Ray is large, and only these tests use it.
test-slow: build
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "ray[data]"
	$(BIN)/python -m pytest -m slow

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(STAMP)

$(STAMP): $(NATIVE)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt scikit-build-core pybind11 ninja
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation \
	    --config-settings cmake.define.EDM_WERROR=ON --editable ".[test]"
	# Only their samplers and formulas are compared with; their many dependencies would replace torch and numpy.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps k-diffusion torch-fidelity
	touch $(STAMP)

bench: build
	$(BIN)/python -m bench.bench_advance

# From bench/results/report; then measured anew, which takes hours and goes on where it was interrupted.
report: build
	$(BIN)/edm-engine report --out out/report

report-fresh: build
	$(BIN)/edm-engine report --measure all --measurements out/report-fresh --out out/report-fresh

# With a GPU: the machine's own Python and nvcc; nothing is downloaded. It must hold torch, triton, numpy, safetensors,
# pillow, tqdm, click, and to build and test scikit-build-core, pybind11 3, cmake, ninja, pytest, pytest-xdist, hypothesis,
# mpmath.
gpu-build:
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .

test-gpu: gpu-build
	$(PYTHON) -c "import sys, torch; from engine import _native; \
	    sys.exit(None if torch.cuda.is_available() and _native.cuda_built else 'test-gpu needs a CUDA device and nvcc')"
	# Triton compiles hundreds of specialisations, eight processes; graphs are alone, for they measure the device's memory.
	$(PYTHON) -m pytest -n 8 -m "slow or not slow" tests/gpu --ignore tests/gpu/test_graphs.py
	$(PYTHON) -m pytest -m "slow or not slow" tests/gpu/test_graphs.py
	$(PYTHON) -m pytest -n auto tests/cpu tests/unit/test_advance.py tests/unit/test_cuda_source.py tests/unit/test_triton_ptx.py \
	    tests/unit/test_triton_networks_ptx.py

# About nine minutes after the build, the most important first; each has its own limit, and what one measured stays when
# it or another fails. Compiling the network for all batch sizes takes longer: bench_sample alone, without --minutes.
bench-gpu: gpu-build
	@failed=; \
	measure() { \
	    started=$$(date +%s); limit=$$1; shift; \
	    timeout --signal=INT --kill-after=20 $$limit $(PYTHON) -m bench.$$* --device cuda || failed="$$failed $$1"; \
	    echo "bench.$$1: $$(($$(date +%s) - started)) s"; \
	}; \
	measure 330 bench_sample --network cifar10:512,1,64 imagenet64:64 --rounds 5 --seconds 8 --longest 30 \
	    --minutes 4.5 --compile-seconds 120; \
	measure 60 profile_sample --network cifar10 --batch 512 --batches 3; \
	measure 60 bench_unet --dtype bfloat16 --batch 1 64 512 --network cifar10 --seconds 1; \
	measure 90 bench_advance --size 1x3x32x32 512x3x32x32; \
	test -z "$$failed" || { echo "bench-gpu: these failed:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) build out .mypy_cache .ruff_cache .pytest_cache
