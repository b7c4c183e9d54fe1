# Everything works in .venv at the root; each target makes what it needs and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Compiled wheels outlive the checkout: the ops of mmcv take about 15 minutes on 2 cores.
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mmsb/wheels

.PHONY: demo ops test test-stock bench chaos lint format golden
.DELETE_ON_ERROR:

# The light stack: classification, segmentation and the demo. mmcv without compiled ops, hence --no-cache-dir:
# a light wheel in pip's cache would be taken for the full one later.
$(VENV)/light: requirements/torch.txt requirements/mminstall.txt requirements/runtime.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip 'setuptools>=80,<82' wheel ninja
	@echo "installing PyTorch (about a minute)"
	$(PIP) install --quiet -r requirements/torch.txt
	@echo "installing mmengine, mmcv, mmdet, mmseg, mmpretrain (about half a minute)"
	MMCV_WITH_OPS=0 $(PIP) install --quiet --no-cache-dir -r requirements/mminstall.txt -r requirements/runtime.txt
	$(PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $@

# The full stack: mmcv with its ops (detection needs them) and the development tools.
$(VENV)/full: $(VENV)/light requirements/dev.txt tools/build_ops_wheel.sh
	$(PIP) install --quiet -r requirements/dev.txt
	wheel=$$(PYTHON=$(BIN)/python WHEELS='$(WHEELS)' tools/build_ops_wheel.sh) && \
		$(PIP) install --quiet --no-deps --force-reinstall "$$wheel"
	@touch $@

# What spatial bias does that a plain ResNet can't: trains both, prints a table, draws into work_dirs/demo.
demo: $(VENV)/light
	$(BIN)/python tools/demo.py

ops: $(VENV)/full

test: $(VENV)/full
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

# A stock OpenMMLab installation: nothing of OneDL's, nothing compiled, so neither mmdet nor mmseg.
STOCK := .venv-stock

$(STOCK)/stock: requirements/stock.txt setup.py
	$(PYTHON) -m venv $(STOCK)
	@echo "installing stock PyTorch 2.1, mmengine, mmcv-lite, mmpretrain (about two minutes)"
	$(STOCK)/bin/python -m pip --disable-pip-version-check install --quiet -r requirements/stock.txt
	$(STOCK)/bin/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	@touch $@

test-stock: $(STOCK)/stock
	$(STOCK)/bin/python -m pytest tests -m 'not ops'

# What the networks cost, counted and measured; a few minutes on a CPU. For figures to report see "Speed" in README.md.
BENCH := work_dirs/bench

bench: $(VENV)/light
	mkdir -p $(BENCH)
	$(BIN)/python tools/analysis/complexity.py --all --stages --bias --json $(BENCH)/complexity.json --csv $(BENCH)/complexity.csv
	$(BIN)/python tools/analysis/throughput.py --all-systems --batch-sizes 8 --repeats 5 --sample-s 0 \
		--json $(BENCH)/throughput.json --plot $(BENCH)/throughput.png

# What a training survives: faults of many kinds, here and with stock mmengine; some 17 minutes on a CPU.
chaos: $(VENV)/full
	PYTHONPATH=tests $(BIN)/python -m chaos.campaign --json work_dirs/chaos.json

lint: $(VENV)/full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $$(git ls-files)
	$(BIN)/shellcheck tools/*.sh .ci/run

format: $(VENV)/full
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Count all shipped models anew; the difference is for a human to judge.
golden: $(VENV)/full
	$(BIN)/python tools/analysis/complexity.py --all --json tests/golden/complexity.json
