# Everything a newcomer needs. Each target builds the environment first where it is missing.
VENV ?= .venv
PY ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.mmcl-setup

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-all lint docs bench pocket-clip pocket-vit results

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP) ## build the environment in .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PY)" || { echo "make: no Python 3.11 or newer found; install one or name it: make setup PY=python3.11" >&2; exit 2; }
	@"$(PY)" -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PY) cannot create virtual environments; \
	install its venv package (Debian, Ubuntu: python3-venv) or name another Python: make setup PY=python3.11" >&2; exit 2; }
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PY)" -m venv "$(VENV)"
	@echo "installing into $(VENV): a few minutes and about 5 GB"
	"$(BIN)/python" -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch "$@"

quickstart: $(STAMP) ## train on the pocket stream with plain fine-tuning and with ZSCL, and compare
	"$(BIN)/mmcl" fit --config quickstart/finetune
	"$(BIN)/mmcl" fit --config quickstart/zscl
	"$(BIN)/mmcl" report runs/quickstart/finetune runs/quickstart/zscl --out runs/quickstart

test: $(STAMP) ## the fast tests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$(BIN)/pytest" -q -n 2 --dist loadfile

test-all: $(STAMP) ## every test, the slow ones too
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$(BIN)/pytest" -q -n 2 --dist loadfile -m ""

lint: $(STAMP) ## ruff and mypy
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

docs: $(STAMP) ## build the pages into site/
	NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --strict

bench: $(STAMP) ## measure the cost of a training step
	OMP_NUM_THREADS=1 "$(BIN)/python" -m mmcl.benchmarks.throughput

pocket-clip: $(STAMP) ## rebuild the small pretrained model of the pocket benchmark
	"$(BIN)/mmcl" fit --config pocket/pretrain
	"$(BIN)/python" -m mmcl.benchmarks.pocket.pack --run runs/pocket/pretrain

pocket-vit: $(STAMP) ## rebuild the small pretrained vision transformer of the classes' benchmark
	"$(BIN)/mmcl" fit --config pocket/names
	"$(BIN)/python" -m mmcl.benchmarks.pocket.pack --run runs/pocket/names --out benchmarks/models/pocket-vit \
	  --file model.safetensors --part backbone

results: $(STAMP) ## every run of the CLIP part of docs/results.md
	"$(BIN)/python" -m mmcl.benchmarks.pocket.results --page docs/results.md
