# What a person types, and all that CI runs.
#   make demo   set up .venv (without torch) and run the main job on the shipped sample
#   make test   set up .venv-dev and run the test suite
#   make lint   ruff, mypy --strict, pyright
#   make ci     lint and test, as .ci/run does
PYTHON ?= python3
VENV := .venv
DEV := .venv-dev
PACKAGES := proto/captory_proto data/captory_data engine/captory_engine server/captory_server clients/captory_client \
	export/captory_export training/captory_training benchmarks/captory_bench
PIP_FLAGS := --quiet --disable-pip-version-check
# Where pip finds a torch that suits this machine, for instance an index of CPU builds; empty: pip's own.
TORCH_INDEX ?=
TORCH := torch==2.13.0

.PHONY: demo test lint ci format stubs bench eval clean

demo: $(VENV)/.ready
	$(VENV)/bin/captory demo --out demo-out

test: $(DEV)/.ready
	$(DEV)/bin/python -m pytest

lint: $(DEV)/.ready
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy $(PACKAGES)
	$(DEV)/bin/pyright --pythonpath $(DEV)/bin/python

ci: lint test

format: $(DEV)/.ready
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

bench: $(VENV)/.ready
	$(VENV)/bin/captory bench serve

eval: $(VENV)/.ready
	$(VENV)/bin/captory eval picto

# The committed stubs; grpcio-tools is of the release line that generates for protobuf 6.
stubs: $(DEV)/.ready
	PATH="$(CURDIR)/$(DEV)/bin:$$PATH" $(DEV)/bin/python -m grpc_tools.protoc -I proto \
		-I $$($(DEV)/bin/python -c 'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parents[1])') \
		--python_out=proto --grpc_python_out=proto --mypy_out=proto --mypy_grpc_out=proto \
		proto/captory_proto/v1/captory.proto

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

clean:
	rm -rf $(VENV) $(DEV) demo-out build dist
