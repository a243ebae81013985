# Every target sets itself up: it makes $(VENV), installs the package with the pinned versions, and goes on.
PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
PYTEST_ARGS ?=

PY := "$(VENV)/bin/python"
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint reproduce docs

help:  ## explain the targets (the default)
	@echo "make TARGET [PYTHON=python3] [VENV=.venv]"
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 20
	@echo
	@echo "The first target that needs it creates \$$(VENV) and installs into it: minutes and a few GB, once."
	@echo "It installs again when pyproject.toml or constraints.txt change."

setup: $(INSTALLED)  ## create the virtual environment and install the package with its test tools

demo: $(INSTALLED)  ## run experiments/demo.py (DEMO_ARGS="--help" lists its options)
	$(PY) experiments/demo.py $(DEMO_ARGS)

test: $(INSTALLED)  ## run the unit tests, then the slower ones, each file in one of two processes (PYTEST_ARGS="-x")
	$(PY) -m pytest -m "not slow and not gpu" -n 2 --dist loadfile $(PYTEST_ARGS)
	$(PY) -m pytest -m "slow and not gpu" -n 2 --dist loadfile $(PYTEST_ARGS) $$(grep -rl --include="*.py" "mark\.slow" tests)

lint: $(INSTALLED)  ## check style, formatting, types and the Dockerfile
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	"$(VENV)/bin/hadolint" Dockerfile

reproduce: $(INSTALLED)  ## train the miniature over 3 seeds and print its table
	$(PY) experiments/reproduce_miniature.py --seeds 3

DOCS_INSTALLED := $(VENV)/.installed-docs
NOTEBOOK := docs/motion.ipynb

docs: $(DOCS_INSTALLED)  ## run the notebook, build the documentation in site/, check its links
	$(PY) -m nbconvert --execute --to markdown $(NOTEBOOK)
	$(PY) -m zensical build --strict --clean

$(DOCS_INSTALLED): $(INSTALLED)
	$(PY) -m pip install -c constraints.txt -e ".[docs]"
	@touch "$@"

$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || \
	    { echo "make: no '$(PYTHON)' found; name a Python 3.10 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "make: $$("$(PYTHON)" --version 2>&1) is too old; name a Python 3.10 or later:" \
	        "make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv "$(VENV)" || \
	    { echo "make: '$(PYTHON) -m venv $(VENV)' failed; on Debian and Ubuntu the package python3-venv is needed" >&2; \
	        exit 1; }
	$(PY) -m pip install -c constraints.txt -e ".[dev,deepspeed]"
	@touch "$@"

# The pinned huggingface-hub is too new for the oldest transformers that pyproject.toml allows, 5.17.0.
TRANSFORMERS ?= 5.17.0
OTHER := .venv-transformers-$(TRANSFORMERS)

test-transformers: $(OTHER)/.installed  ## test Video-LLMs, their training and evaluation with another transformers
	"$(OTHER)/bin/python" -m pytest -m "not gpu" -n 2 --dist loadfile $(PYTEST_ARGS) tests/vlm tests/training tests/evaluation

$(OTHER)/.installed: pyproject.toml constraints.txt
	"$(PYTHON)" -m venv "$(OTHER)"
	grep -vE '^(transformers|huggingface-hub)==' constraints.txt > "$(OTHER)/constraints.txt"
	"$(OTHER)/bin/python" -m pip install -c "$(OTHER)/constraints.txt" -e ".[dev]" transformers==$(TRANSFORMERS)
	@touch "$@"

# lmms-eval wants an older av and protobuf than the package's own tests, so it has an environment of its own. An av
# below 17.1 reads some files wrongly: the second command puts the newer one back, and pip tells of the conflict.
LMMS := .venv-lmms
.PHONY: test-lmms-eval test-quantize test-transformers

test-lmms-eval: $(LMMS)/.installed  ## test the lmms-eval plugin in the real lmms-eval, installed in .venv-lmms
	"$(LMMS)/bin/python" -m pytest tests/lmms_eval/check_plugin.py $(PYTEST_ARGS)

$(LMMS)/.installed: pyproject.toml constraints.txt
	"$(PYTHON)" -m venv "$(LMMS)"
	grep -vE '^(av|protobuf)==' constraints.txt > "$(LMMS)/constraints.txt"
	"$(LMMS)/bin/python" -m pip install -c "$(LMMS)/constraints.txt" pytest pytest-timeout lmms-eval==0.7.3
	grep -v '^protobuf==' constraints.txt > "$(LMMS)/constraints.txt"
	"$(LMMS)/bin/python" -m pip install -c "$(LMMS)/constraints.txt" -e .
	@touch "$@"

# bitsandbytes in .venv would add a second to the start of every process that imports peft.
FOUR_BITS := .venv-quantize

test-quantize: $(FOUR_BITS)/.installed  ## train, save and open a base in 4 bits, with bitsandbytes in .venv-quantize
	"$(FOUR_BITS)/bin/python" -m pytest tests/vlm/test_checkpoint.py -k four_bits_trains $(PYTEST_ARGS)

$(FOUR_BITS)/.installed: $(INSTALLED)
	$(PY) -m venv "$(FOUR_BITS)"
	$(PY) -c "import site; print(site.getsitepackages()[0])" > "$$(echo "$(FOUR_BITS)"/lib/python*/site-packages)/venv.pth"
	"$(FOUR_BITS)/bin/python" -m pip install --no-deps -c constraints.txt bitsandbytes
	@touch "$@"
