# Two commands need nothing but Python 3.9 to 3.13: `make demo` and `make test`. PYTHON=python3.13 chooses another interpreter.
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN = $(VENV)/bin
# What was tested on this Python, where there is such a file; else what setup.py permits.
CONSTRAINTS := $(wildcard constraints-py$(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])').txt)
DEMO = demo

.PHONY: demo test test-slow lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/tfssl-train --flagfile=flags/glyphs/rotation.flags --workdir=$(DEMO)
	test -d $(DEMO)/module/rotation || $(BIN)/tfssl-export --workdir=$(DEMO) --export_dir=$(DEMO)/module/rotation
	test -d $(DEMO)/module/random || $(BIN)/tfssl-export --workdir=$(DEMO) --random_init
	$(BIN)/tfssl-eval --module=rotation=$(DEMO)/module/rotation,random=$(DEMO)/module/random --flagfile=flags/glyphs/eval.flags --workdir=$(DEMO)/eval
	@echo
	@echo "The encoder, a TF-Hub module:   $(DEMO)/module/rotation"
	@echo "Results and plots:              $(DEMO)/eval"
	@echo "Training curves:                $(BIN)/tensorboard --logdir $(DEMO)"
	@echo "Next, on your own photographs:  $(BIN)/tfssl-train --dataset=folder:PHOTOS --dry_run"

test: $(VENV)/installed
	$(BIN)/python tests/parallel.py --processes=3 $(TESTS) -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=3600

lint: $(VENV)/installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m mypy

docs: $(VENV)/installed-docs
	rm -rf docs/generated
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo "build/docs/index.html"

.venv: $(VENV)/installed

$(VENV)/installed: setup.py pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 9) <= v <= (3, 13) else "tfssl needs Python 3.9 to 3.13, and %s is %d.%d: make PYTHON=python3.11" % ((sys.executable,) + v))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]" $(CONSTRAINTS:%=--constraint %)
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]" $(CONSTRAINTS:%=--constraint %)
	@touch $@

clean:
	rm -rf .venv .venv-* $(DEMO) build docs/generated *.egg-info
