# make demo             train, prune, shrink, export and show a small network on built-in data (7 minutes)
# make demo-detection   transfer one to a detector, where detectron2 is installed (4 minutes)
# make bench            times and memory beside plain networks (docs/performance.md)
# make docs             the documentation as a site, output/site/index.html; fails on a broken link
# make test             lint, documentation and the whole test suite (about 15 minutes)
# All make their own virtual environment in .venv the first time (a few GB of downloads);
# with DETECTRON2=0 it is another one, .venv-plain, without detectron2.

PYTHON ?= python3
DETECTRON2 ?= 1
VENV   ?= $(if $(filter 0,$(DETECTRON2)),.venv-plain,.venv)
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= 2
TIMM_TESTS := $(VENV)/timm-tests

.PHONY: demo demo-detection bench docs test lint unit upstream clean help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# //p' Makefile | head -7

demo: $(STAMP)
	@$(BIN)/python tools/demo.py --output output/demo

demo-detection: $(STAMP)
	@$(BIN)/python tools/demo_detection.py --output output/demo-detection

bench: $(STAMP)
	@mkdir -p output
	@$(BIN)/python tools/benchmark.py --suite main cifar routed rewired pruned memory growth start compile \
	  --json output/performance.json --markdown output/performance.md

docs: $(STAMP)
	@echo '== documentation (mkdocs)'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f docs/site/mkdocs.yml

test: lint docs unit upstream

lint: $(STAMP)
	@echo '== lint (ruff)'
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

unit: $(STAMP)
	@echo '== test suite'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

# timm's own tests/test_models.py, from its source distribution, on our models
upstream: $(STAMP) $(TIMM_TESTS)/test_models.py
	@echo "== timm's own model tests on our models"
	@OMP_NUM_THREADS=1 PYTHONPATH=tests/upstream $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal \
	  -c /dev/null --rootdir=$(TIMM_TESTS) -p timm_upstream -p no:cacheprovider -W ignore \
	  --import-mode=importlib $(TIMM_TESTS)/test_models.py

$(TIMM_TESTS)/test_models.py: $(STAMP)
	@echo "== fetching timm's tests (source distribution of the installed version)"
	@rm -rf $(TIMM_TESTS) && mkdir -p $(TIMM_TESTS)
	@$(BIN)/python -m pip download -q --no-deps --no-binary timm -d $(TIMM_TESTS) \
	  "timm==$$($(BIN)/python -c 'import timm; print(timm.__version__)')" \
	  || { echo "error: pip cannot fetch timm's source distribution"; exit 1; }
	@$(BIN)/python -c "import glob, os, tarfile; \
	  a = tarfile.open(glob.glob('$(TIMM_TESTS)/timm-*.tar.gz')[0]); \
	  [open('$(TIMM_TESTS)/' + os.path.basename(m.name), 'wb').write(a.extractfile(m).read()) \
	   for m in a if '/tests/' in m.name and m.isfile()]"
	@touch $@

$(STAMP): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is missing or older than 3.10; set PYTHON=/path/to/python"; exit 1; }
	@echo '== making $(VENV) and installing (several minutes the first time)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]' \
	  || { echo 'error: pip could not install the requirements in setup.py (see above)'; exit 1; }
	@if [ '$(DETECTRON2)' != 0 ] \
	  && $(BIN)/python -m pip install -q --no-index --no-deps detectron2 2>/dev/null; \
	  then $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[detection]'; \
	  else echo '== no detectron2 here: its tests will be skipped (README, Detection)'; fi
	@touch $@

clean:
	rm -rf $(VENV) output build dist *.egg-info
