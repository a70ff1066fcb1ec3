PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
CODE := workbench tests notebooks tools benchmarks data/organism/build data/words
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
# Test processes beside each other, one thread each: two processes with two threads each on two cores are several times slower.
JOBS ?= 2
PYTEST := WORKBENCH_QUICK=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.PHONY: help install demo check test test-slow test-vllm test-unsloth lab organism bench clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# The stamp is written last, so an interrupted install is taken up again.
$(STAMP): pyproject.toml constraints.txt tools/install.sh
	PYTHON=$(PYTHON) tools/install.sh $(VENV)
	@touch $@

install: $(STAMP) ## the virtual environment, .venv (every other target makes it when needed)

demo: $(STAMP) ## a few minutes: watch a small language model get better, then read the page it leaves
	$(BIN)/workbench tour --out tour.html
	@echo "Open file://$(CURDIR)/tour.html in a browser."

check: $(STAMP) ## form: ruff at 100 columns
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

test: check ## form, fast tests, then every notebook in quick mode
	$(PYTEST) tests
	@test -n "$(NOTEBOOKS)" || { echo "no notebooks under notebooks/" >&2; exit 1; }
	$(PYTEST) --nbmake --nbmake-timeout=600 $(NOTEBOOKS)

test-slow: $(STAMP) ## the tests marked slow, with all cores
	$(BIN)/python -m pytest -m slow tests

# They take minutes and 3 GB each, so: before a release, and when a version of theirs is raised.
test-vllm: ## vLLM itself on a CPU, in an environment of its own
	PYTHON=$(PYTHON) tools/engines.sh vllm

test-unsloth: ## Unsloth itself on a CPU, in an environment of its own
	PYTHON=$(PYTHON) tools/engines.sh unsloth

# Our notebooks are trusted, so that their saved pictures keep their style sheets; and JupyterLab asks nothing at its first start.
lab: $(STAMP) ## JupyterLab on the notebooks
	$(BIN)/jupyter trust $(NOTEBOOKS)
	$(BIN)/jupyter labextension disable @jupyterlab/apputils-extension:announcements
	$(BIN)/jupyter lab notebooks

organism: $(STAMP) ## train the small models in data/organism again
	$(BIN)/python -m data.organism.build.arithmetic
	$(BIN)/python -m data.organism.build.teacher_26
	$(BIN)/python -m data.organism.build.programs

bench: $(STAMP) ## step time, parts and memory against TRL, side by side
	$(BIN)/python benchmarks/vs_trl.py

clean: ## remove caches and the tour's page (.venv and runs stay)
	rm -rf build *.egg-info .pytest_cache tour.html tour-quick.html
	find workbench tests notebooks benchmarks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
