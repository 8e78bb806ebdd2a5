# The two commands: `make demo` and `make test`. Both make their own environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint unit slow generated bench clean tools slurm

demo: $(VENV)/installed
	$(BIN)/higgsc run specs/quickstart.yaml

test: $(VENV)/installed tools lint unit slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/higgsc build --check specs/*.yaml

# While one works: minutes. What takes longer (several processes, a Slurm cluster, whole runs) is in `slow`.
unit: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "not slow"

slow: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m slow --durations=15

generated: $(VENV)/installed
	$(BIN)/higgsc build specs/*.yaml

bench: $(VENV)/installed .venv-torchx/installed
	$(BIN)/python benchmarks/build.py --torchx .venv-torchx/bin/torchx
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/scale.py

# The tests run shellcheck on every script that is emitted, ask a real language server about the schema, and hand
# steps to the real TorchX, which pins an old urllib3 and so has an environment of its own.
tools: $(VENV)/node/installed .venv-torchx/installed slurm

# They run the emitted scripts on a Slurm cluster of their own, which takes root; without it those tests are skipped.
slurm:
	@command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null \
	  && command -v munged >/dev/null || \
	  if [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && apt-get install -y -qq slurmctld slurmd slurm-client munge; \
	  else echo "no Slurm here, and no root to install it: tests on a cluster will be skipped"; fi

.venv-torchx/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-torchx
	.venv-torchx/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[torchx]'
	@touch $@

$(VENV)/node/installed: $(VENV)/installed
	@for tool in shellcheck npm; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -z "$$missing" ] || { \
	  [ "$$(id -u)" = 0 ] || { echo "please install:$$missing" >&2; exit 1; }; \
	  apt-get update -qq && apt-get install -y -qq $$missing; }
	npm install --silent --no-fund --no-audit --prefix $(VENV)/node yaml-language-server@1.19.2
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "higgsc needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,serve,eval,quantize,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-torchx runs dist build
