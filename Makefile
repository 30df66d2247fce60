# Every target sets itself up in .venv: no step to do by hand before it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := CMakeLists.txt pyproject.toml constraints.txt $(wildcard csrc/*)

.PHONY: sample test test-slow lint build bench report report-fresh clean gpu-build gpu-ready bench-gpu \
        test-gpu test-gpu-graphs test-gpu-kernels test-gpu-host test-gpu-sanitizer

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
	@$(PYTHON) -c "import sys; from importlib.metadata import distributions as found; from importlib.util import find_spec; \
	    from shutil import which; versions = [int(each.version.split('.')[0]) for each in found(name='pybind11')]; \
	    there = {'scikit-build-core': find_spec('scikit_build_core'), 'pybind11 3': max(versions, default=0) >= 3} \
	    | {name: which(name) or find_spec(name) for name in ('cmake', 'ninja')}; \
	    missing = ', '.join(name for name in there if not there[name]); \
	    sys.exit(f'gpu-build needs {missing}; $(PYTHON) has none' if missing else 0)"
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .

gpu-ready: gpu-build
	@$(PYTHON) -c "import sys, torch; from engine import _native; \
	    sys.exit(None if torch.cuda.is_available() and _native.cuda_built else 'test-gpu needs a CUDA device and nvcc')"

# Each part by itself where all take longer than a command may.
test-gpu: test-gpu-graphs test-gpu-kernels test-gpu-host test-gpu-sanitizer

# Alone, for they measure the device's memory.
test-gpu-graphs: gpu-ready
	$(PYTHON) -m pytest -m "slow or not slow" tests/gpu/test_graphs.py

# Triton compiles hundreds of specialisations, eight processes.
test-gpu-kernels: gpu-ready
	OMP_NUM_THREADS=2 $(PYTHON) -m pytest -n 8 --dist worksteal -m "slow or not slow" -k "not sanitizer" tests/gpu \
	    --ignore tests/gpu/test_graphs.py

test-gpu-host: gpu-ready
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist worksteal tests/cpu tests/unit/test_advance.py \
	    tests/unit/test_cuda_source.py tests/unit/test_triton_ptx.py tests/unit/test_triton_networks_ptx.py

test-gpu-sanitizer: gpu-ready
	OMP_NUM_THREADS=2 $(PYTHON) -m pytest -n 4 -m "slow or not slow" -k sanitizer tests/gpu/test_advance.py

# Eight minutes at most after the build, the most important first; each has its own limit, and what one measured stays
# when it or another fails, in RESULTS if that is given. Compiling the network takes minutes for each batch size:
#     python -m bench.bench_sample --network cifar10:512 --variant "compile reduce-overhead" --job 0 --label compile
bench-gpu: gpu-build
	@failed=; \
	measure() { \
	    started=$$(date +%s); limit=$$1; name=$$2; shift 2; \
	    timeout --signal=INT --kill-after=10 $$limit $(PYTHON) -m bench.$$name --device cuda \
	        $(if $(RESULTS),--results "$(RESULTS)") "$$@" || failed="$$failed $$name"; \
	    echo "bench.$$name: $$(($$(date +%s) - started)) s"; \
	}; \
	measure 270 bench_sample --network cifar10:512,1 imagenet64:64 cifar10:64 --no-compile --rounds 4 --seconds 4 \
	    --longest 10 --job 3072 --variant "engine, no graph" "eager float32" "eager bfloat16, channels_last" \
	    k-diffusion diffusers; \
	measure 70 profile_sample --network cifar10 --batch 512 --batches 2; \
	measure 80 bench_unet --dtype bfloat16 --batch 512 1 64 --network cifar10 --seconds 0.5; \
	measure 40 bench_advance --size 1x3x32x32 512x3x32x32 --no-compile --seconds 0.2; \
	test -z "$$failed" || { echo "bench-gpu: these failed:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) build out .mypy_cache .ruff_cache .pytest_cache
