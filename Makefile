# Everything a newcomer needs, on a machine with Python 3.11 or newer, pip and make.
# The environment in .venv is made on the first call and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
# Where torch comes from; empty: where everything else does. A CPU-only Linux machine saves gigabytes with
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Passed on to the command of `make demo` and `make test`.
ARGS ?=
FUZZ_SECONDS ?= 60

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell grep '^torch==' constraints.txt)

CODEGEN := .venv-codegen
CODEGEN_READY := $(CODEGEN)/.ready

PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-all chaos fuzz lint audit types protos bench bench-peers clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

demo: $(READY) ## train on this machine with one server and five clients, and show it
	$(BIN)/fedcore demo $(ARGS)

test: $(READY) ## run the tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(READY) ## run the tests, the slow ones too
	$(PIP) install -c constraints.txt -e '.[hf]'
	$(BIN)/python -m pytest -m "" $(ARGS)

# What passed is noted in files, and begun anew when any code has changed: an hour need not be spent in one piece. What is
# measured under load runs alone, and all else two at a time; that ARGS chooses none of either (5) is no failure.
chaos: $(READY) ## disturb whatever can be, in less than an hour; if it was interrupted, it goes on
	@failed=0; \
	$(BIN)/python -m pytest -n 2 --dist worksteal -m chaos tests --ignore tests/load --resume .pytest_cache/chaos $(ARGS) || [ $$? = 5 ] || failed=1; \
	$(BIN)/python -m pytest -m chaos tests/load --resume .pytest_cache/chaos-load $(ARGS) || [ $$? = 5 ] || failed=1; \
	exit $$failed

# The targets are in tests/fuzz, what is found in .fuzz; `make fuzz ARGS="update client"` takes only these.
fuzz: $(READY) ## send damaged messages to what decodes them, FUZZ_SECONDS for each target (Linux)
	$(PIP) install -c constraints.txt -e '.[fuzz]'
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS) $(ARGS)

lint: $(READY) ## look for mistakes and bad style
	$(BIN)/ruff check .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive fedcore codecs transports

# Strict: a version that the index has no advisories for is no version without any.
audit: $(READY) ## ask the package index whether what is used is known to be vulnerable
	$(PIP) install -c constraints.txt -e '.[audit]'
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

# From the root mypy would silently check fedcore/ alone, and it cannot see through an editable install: it gets a copy
# that was installed the way users install it.
types: $(READY) ## check the types
	rm -rf build $(VENV)/typed
	$(PIP) install --no-deps --target $(VENV)/typed .
	rm -rf build
	cd $(VENV)/typed && ../bin/mypy --cache-dir ../.mypy_cache --config-file ../../pyproject.toml -p fedcore

# The oldest supported compiler, because older runtimes refuse what newer compilers write. The mapping of paths makes the
# files import one another as fedcore.protos.
protos: $(CODEGEN_READY) ## make the Python code from protos/fedcore.proto again
	rm -rf $(CODEGEN)/out
	mkdir $(CODEGEN)/out
	$(CODEGEN)/bin/python -m grpc_tools.protoc -Ifedcore/protos=protos \
		--python_out=$(CODEGEN)/out --pyi_out=$(CODEGEN)/out --grpc_python_out=$(CODEGEN)/out protos/fedcore.proto
	mv $(CODEGEN)/out/fedcore/protos/fedcore_pb2* protos/

bench: $(READY) ## run the benchmarks, in under ten minutes, and write benchmarks/RESULTS.md
	$(BIN)/python benchmarks/suite.py $(ARGS)

# Flower asks for other versions of what fedcore uses, too: it has an environment of its own.
bench-peers: $(READY) $(PEERS_READY) ## measure Flower beside fedcore; `make bench` shows it from then on
	$(BIN)/python benchmarks/peers.py $(ARGS)

clean: ## remove the environments, caches and builds; what runs left in runs/ stays
	rm -rf $(VENV) $(CODEGEN) $(PEERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH), then fedcore and its tools; this is done once"
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),-c constraints.txt) "$(TORCH)"
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(CODEGEN_READY): Makefile
	$(PYTHON) -m venv $(CODEGEN)
	$(CODEGEN)/bin/python -m pip --disable-pip-version-check --quiet install 'grpcio-tools==1.74.0' 'setuptools<81'
	@touch $@

$(PEERS_READY): Makefile constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install 'flwr==1.41.0' "$(TORCH)"
	@touch $@
