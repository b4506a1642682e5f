# Needs make, pip and Python 3.11 or newer (PYTHON=...). Every target sets up the virtual environment first where there is none.

PYTHON ?= python3
EXTRAS ?= plots,studies,examples,tests
JOBS ?= 2
TESTS ?= tests

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
CHECKS := $(VENV)/.with-checks
SITE := $(VENV)/.with-notebooks,docs
PYTEST := $(RUN) -m pytest -n $(JOBS) --dist worksteal

# The code of this directory is what runs, also when the directory, virtual environment included, was moved or copied.
export PYTHONPATH := $(CURDIR)

# Bytecode of tests, and of modules with checks of types, takes seconds to make in each process that may not keep it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: all demo test slow lint types bench robustness notebooks docs install clean
.DEFAULT_GOAL := test

all: test slow lint types notebooks docs demo  ## what .ci/run runs, and the slow tests

demo: $(INSTALLED)  ## estimate Nevo's cereal demand; write build/nevo_elasticities.png
	$(RUN) examples/nevo.py

test: $(INSTALLED)  ## the tests that take seconds (TESTS=tests/kernels for some of them)
	$(PYTEST) $(TESTS)

slow: $(SITE)  ## the tests marked slow
	$(PYTEST) -m slow $(TESTS)

lint: $(CHECKS)  ## style, and the order of the layers
	$(RUN) -m ruff check .
	$(RUN) $(VENV)/bin/lint-imports

types: $(CHECKS)
	$(RUN) -m mypy

bench: $(INSTALLED)  ## one row per case, beside PyBLP in the same run
	$(RUN) -m benchmarks

robustness: $(INSTALLED)  ## methods that invert shares, on hard markets; fails where a success was none
	$(RUN) -m benchmarks.robustness

notebooks: $(SITE)  ## execute copies in build/notebooks
	mkdir -p build/notebooks
	printf '%s\n' notebooks/*.ipynb | xargs -n 1 -P $(JOBS) $(RUN) -m nbconvert --to notebook --execute --output-dir build/notebooks

docs: $(SITE)  ## the site in build/site, with executed notebooks where `make notebooks` has made some
	$(RUN) docs/site/build.py build/site

install: $(INSTALLED)

clean:  ## everything that was made, except the virtual environment
	rm -rf build dist "$${XDG_CACHE_HOME:-$$HOME/.cache}/blpjax-tests" .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find blpjax tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's Python may come without ensurepip: then its own pip, outside the environment, installs one.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("blpjax needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": run make PYTHON=python3.12, for example")'
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }
	@# older ones read lists of packages for half a minute
	$(RUN) -m pip install --quiet --upgrade pip || true
	$(RUN) -m pip install --quiet --no-compile --editable '.[$(EXTRAS)]'
	@# on all cores, and without what is no module and what nobody imports: pip takes twice as long
	$(RUN) -m compileall -q -j 0 -x '/(tests?|pip|statsmodels|fontTools|physics)/' $(VENV)/lib blpjax || true
	@touch $@

# What only some targets need.
$(VENV)/.with-%: $(INSTALLED)
	$(RUN) -m pip install --quiet --editable '.[$*]'
	@touch $@
