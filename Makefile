# Everything works in .venv at the root; each target makes what it needs and nothing else. Nothing is compiled.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := python -m pip --disable-pip-version-check install --quiet
# From setuptools 82 on the pkg_resources is missing that mmengine imports.
SETUPTOOLS := 'setuptools>=80,<82'
# A compiled mmcv in pip's cache may be one for another PyTorch.
LIGHT := --no-cache-dir
export MMCV_WITH_OPS := 0
# Syntax that an old Python reads too: it says its version instead of failing on a package.
define NEW_VENV
@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: mmsb needs Python 3.10 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
$(PYTHON) -m venv
endef
PYTEST := python -m pytest -n 2 --dist loadfile tests

.PHONY: demo test test-stock test-newest test-ops bench chaos lint format golden
.DELETE_ON_ERROR:

# What users install: PyTorch, the OpenMMLab family, mmsb.
$(VENV)/light: requirements/torch.txt requirements/mminstall.txt requirements/runtime.txt setup.py
	$(NEW_VENV) $(VENV)
	$(BIN)/$(INSTALL) --upgrade pip $(SETUPTOOLS) wheel
	@echo "installing PyTorch (about a minute)"
	$(BIN)/$(INSTALL) -r requirements/torch.txt
	@echo "installing mmengine, mmcv, mmdet, mmseg, mmpretrain (about half a minute)"
	$(BIN)/$(INSTALL) $(LIGHT) -r requirements/mminstall.txt -r requirements/runtime.txt
	$(BIN)/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/full: $(VENV)/light requirements/dev.txt
	$(BIN)/$(INSTALL) -r requirements/dev.txt
	@touch $@

# What spatial bias does that a plain ResNet can't: trains both, prints a table, draws into work_dirs/demo.
demo: $(VENV)/light
	$(BIN)/python tools/demo.py

test: $(VENV)/full
	$(BIN)/$(PYTEST)

# Other sets of packages, each in an environment of its own; docs/packages.md says which were run, and when.
.venv-newest/ready: requirements/mminstall.txt requirements/runtime.txt requirements/dev.txt setup.py
	$(NEW_VENV) .venv-newest
	.venv-newest/bin/$(INSTALL) --upgrade pip $(SETUPTOOLS) wheel
	.venv-newest/bin/$(INSTALL) --upgrade torch torchvision
	.venv-newest/bin/$(INSTALL) $(LIGHT) $(addprefix -r requirements/,mminstall.txt runtime.txt dev.txt)
	.venv-newest/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv-stock-%/ready: requirements/stock-%.txt requirements/stock.txt setup.py
	$(NEW_VENV) .venv-stock-$*
	.venv-stock-$*/bin/$(INSTALL) --upgrade pip
	.venv-stock-$*/bin/$(INSTALL) -r $<
	.venv-stock-$*/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# OneDL's packages on the newest PyTorch that pip finds.
test-newest: .venv-newest/ready
	.venv-newest/bin/$(PYTEST)

# OpenMMLab's own packages on the oldest PyTorch that mmsb supports, and on the newest that they run with.
test-stock: test-stock-oldest test-stock-newest

test-stock-%: .venv-stock-%/ready
	.venv-stock-$*/bin/$(PYTEST)

# mmsb.ops against mmcv's own compiled kernels. Needs a C++ compiler and half an hour; PyTorch 2.12 is the last whose headers
# these kernels compile with.
.venv-ops/ready: requirements/mminstall.txt requirements/runtime.txt setup.py
	$(NEW_VENV) .venv-ops
	.venv-ops/bin/$(INSTALL) --upgrade pip $(SETUPTOOLS) wheel ninja pytest
	.venv-ops/bin/$(INSTALL) torch==2.12.1 torchvision==0.27.1
	MMCV_WITH_OPS=1 .venv-ops/bin/$(INSTALL) --no-cache-dir --no-build-isolation $$(grep onedl-mmcv requirements/mminstall.txt)
	.venv-ops/bin/$(INSTALL) -r requirements/mminstall.txt -r requirements/runtime.txt
	.venv-ops/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

test-ops: .venv-ops/ready
	.venv-ops/bin/python -m pytest tests/ops/compare.py

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
