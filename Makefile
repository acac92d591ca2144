# `make` lists the targets. Everything is installed into .venv, from requirements.lock, by hash.

PYTHON ?= python3.11 python3
BIN := .venv/bin
STAMP := .venv/vectorshard.stamp
CHECKERS := build/checkers

LISTEN ?= 127.0.0.1:7700
DATA ?= data

QUICK := not deploy and not system_net and not system_long and not promises and not typescript

# The tests start hundreds of processes. Without cached bytecode, each takes a second to compile.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo serve test test-net test-long test-typescript promises check check-deploy fix bench compare glove lock release-contract clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install everything into .venv; repeated only after a dependency changed

demo: setup ## stream 20,000 words in over gRPC, and search them while the index trains
	$(BIN)/vectorshard demo

serve: setup ## run a server on LISTEN, with its rows in DATA
	$(BIN)/vectorshard serve --data $(DATA) --listen $(LISTEN)

test: setup ## run all tests, two files at a time; those that measure times run alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m '$(QUICK) and not alone'
	$(BIN)/python -m pytest -m '$(QUICK) and alone' tests/system

test-net: setup ## test moving shards and lost packets; needs root, iproute2, iptables, dnsmasq
	@.ci/prerequisites --net >/dev/null
	tests/net/isolated $(BIN)/python -m pytest -m system_net -rP tests/net

test-long: setup ## test overload, restarts, kills, restores, damage and power cuts for some hours; prints measurements
	@.ci/prerequisites --compiler >/dev/null
	$(BIN)/python -m pytest -m system_long -rP tests/system tests/simulation tests/model tests/conformance tests/backup tests/shard
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m system_long -rP tests/test_crash_states_long.py tests/test_damage.py

test-typescript: setup ## test examples/typescript; needs node and npm
	@.ci/prerequisites --node >/dev/null
	@mkdir -p build/typescript && cp examples/typescript/package*.json build/typescript/
	cd build/typescript && npm ci --silent --no-fund --no-audit
	$(BIN)/python -m pytest -m typescript tests/system/test_typescript.py

promises: setup ## test many shapes of data, and what searches cost; resumes, see build/promises.jsonl
	$(BIN)/python -m pytest -m promises tests/promises

check: setup ## check with linters and mypy: code, contract, and the rules of the house
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --check
	mkdir -p build
	$(BIN)/python protos/generate.py --image build/contract.binpb
	$(BIN)/buf lint build/contract.binpb
	$(BIN)/buf breaking build/contract.binpb --against protos/released.binpb
	$(BIN)/python -m pytest --quiet tests/test_house.py tests/test_lock.py

check-deploy: setup $(CHECKERS)/stamp ## check the Dockerfile and the manifests; needs kubectl
	deploy/check $(CHECKERS)/bin
	$(BIN)/python -m pytest --quiet -m deploy tests/deploy

fix: setup ## generate the Python of the contract; format; repair what the linter can repair
	$(BIN)/python protos/generate.py
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup ## run the measurements of benchmarks/README.md, or those named by ONLY="words start"
	$(BIN)/python -m benchmarks $(addprefix --only ,$(ONLY))

compare: setup ## measure ours beside other vector stores; DISTRIBUTED_FAISS=DIR adds a checkout of it
	$(BIN)/python -m benchmarks.compare $(addprefix --distributed-faiss ,$(DISTRIBUTED_FAISS))
	$(BIN)/python -m benchmarks.compare.report build/compare.json

glove: setup ## make build/glove-100.hdf5: 336,479 words with ground truth; needs npm, once
	$(BIN)/python -m benchmarks.glove

lock: setup ## resolve all lock files; LOCK=--upgrade takes the newest versions
	$(RESOLVE) --all-extras pyproject.toml -o requirements.lock
	$(RESOLVE) --extra server --extra s3 --constraint requirements.lock pyproject.toml -o deploy/requirements.lock
	$(RESOLVE) --constraint requirements.lock deploy/build.in -o deploy/build.lock
	$(RESOLVE) deploy/checkers.in -o deploy/checkers.lock
	$(RESOLVE) benchmarks/stock.in -o benchmarks/stock.lock
	$(RESOLVE) benchmarks/compare/compare.in -o benchmarks/compare/compare.lock

release-contract: setup ## record the contract as released; `make check` then rejects breaking changes
	$(BIN)/python protos/generate.py --image protos/released.binpb

clean: ## remove everything that the other targets made, except DATA
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find protos shard router client backup cli vectorshard tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

RESOLVE = $(BIN)/uv --no-config pip compile --quiet --generate-hashes --no-emit-index-url \
  --no-header --universal --python-version 3.11 $(LOCK)

PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
  --only-binary :all: --require-hashes

# uv installs in seconds what takes pip a minute. pip does it where uv does not reach an index, such
# as one that only pip's configuration names.
# Wheels only: a build from source would install packages that the lock does not pin.
$(STAMP): pyproject.toml requirements.lock
	@echo "setting up: installing requirements.lock into .venv, which may take a minute"
	@test -x $(BIN)/pip || { python=$$(.ci/prerequisites $(PYTHON)) && "$$python" -m venv .venv; }
	@awk '/^uv==/ {found=1} found {print} found && !/\\$$/ {exit}' requirements.lock >.venv/uv.lock
	@$(PIP) --no-deps -r .venv/uv.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build --require-hashes \
	  -r requirements.lock 2>.venv/uv.log || $(PIP) -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation -e .
	@touch $@

$(CHECKERS)/stamp: deploy/checkers.lock | $(STAMP)
	@echo "installing deploy/checkers.lock into $(CHECKERS), which may take a minute"
	@$(BIN)/python -m venv $(CHECKERS)
	@$(CHECKERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --only-binary :all: --require-hashes -r deploy/checkers.lock
	@touch $@
