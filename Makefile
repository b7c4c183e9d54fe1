# All targets use .venv at the root, and each installs only what it needs. Nothing is compiled (except for test-ops).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := python -m pip --disable-pip-version-check install --quiet
# setuptools 82 removed pkg_resources, which mmengine imports.
SETUPTOOLS := 'setuptools>=80,<82'
# pip's cache may hold an mmcv that was compiled for another PyTorch.
LIGHT := --no-cache-dir
export MMCV_WITH_OPS := 0
# The check must also parse on an old Python, which then reports its version instead of failing on a package.
define NEW_VENV
@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: mmsb needs Python 3.10 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
$(PYTHON) -m venv
endef
# Stands for opencv-python. That must go first: its files in cv2/ are headless's as well.
OPENCV := ./requirements/opencv-python
NO_OPENCV := python -m pip --disable-pip-version-check -qq uninstall --yes opencv-python opencv-python-headless
DEV := requirements/dev.txt requirements/mim.txt requirements/analysis.txt requirements/export.txt
# Where everything fails, such as on a full disk, the first failures are printed before time is up.
PYTEST := python -m pytest -n 2 --dist loadfile --maxfail 50 tests

.PHONY: demo test test-stock test-newest test-ops test-browser bench bench-gpu chaos lint format golden docs dist
.DELETE_ON_ERROR:

# What users install: PyTorch, the OpenMMLab libraries and mmsb.
$(VENV)/light: requirements/torch.txt requirements/mminstall.txt requirements/runtime.txt $(OPENCV)/pyproject.toml setup.py
	$(NEW_VENV) $(VENV)
	$(BIN)/$(INSTALL) --upgrade pip $(SETUPTOOLS) wheel
	@echo "installing PyTorch (about a minute)"
	$(BIN)/$(INSTALL) -r requirements/torch.txt
	@echo "installing mmengine, mmcv, mmdet, mmseg, mmpretrain (about half a minute)"
	$(BIN)/$(NO_OPENCV)
	$(BIN)/$(INSTALL) $(LIGHT) $(OPENCV) -r requirements/mminstall.txt -r requirements/runtime.txt
	$(BIN)/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/full: $(VENV)/light $(DEV)
	$(BIN)/$(INSTALL) -r requirements/dev.txt
	$(BIN)/$(INSTALL) --no-deps -r requirements/mim.txt
	@touch $@

# Shows a task that spatial bias solves, and a plain ResNet and a global mean cannot; plots to work_dirs/demo.
demo: $(VENV)/light
	$(BIN)/python tools/demo.py

test: $(VENV)/full
	$(BIN)/$(PYTEST)

# Other sets of packages, each in its own environment; docs/packages.md lists which were tested, and when.
.venv-newest/ready: requirements/mminstall.txt requirements/runtime.txt $(OPENCV)/pyproject.toml $(DEV) setup.py
	$(NEW_VENV) .venv-newest
	.venv-newest/bin/$(INSTALL) --upgrade pip $(SETUPTOOLS) wheel
	.venv-newest/bin/$(INSTALL) --upgrade torch torchvision
	.venv-newest/bin/$(NO_OPENCV)
	.venv-newest/bin/$(INSTALL) $(LIGHT) $(OPENCV) $(addprefix -r requirements/,mminstall.txt runtime.txt dev.txt)
	.venv-newest/bin/$(INSTALL) --no-deps -r requirements/mim.txt
	.venv-newest/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv-stock-%/ready: requirements/stock-%.txt requirements/stock.txt $(OPENCV)/pyproject.toml setup.py
	$(NEW_VENV) .venv-stock-$*
	.venv-stock-$*/bin/$(INSTALL) --upgrade pip
	.venv-stock-$*/bin/$(NO_OPENCV)
	.venv-stock-$*/bin/$(INSTALL) $(OPENCV) -r $<
	.venv-stock-$*/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# OneDL's packages on the newest PyTorch that pip finds.
test-newest: .venv-newest/ready
	.venv-newest/bin/$(PYTEST)

# OpenMMLab's own packages on the oldest PyTorch that mmsb supports and on the newest that they work with.
test-stock: test-stock-oldest test-stock-newest

test-stock-%: .venv-stock-%/ready
	.venv-stock-$*/bin/$(PYTEST)

# Compares mmsb.ops with mmcv's own compiled kernels. Needs a C++ compiler and half an hour. PyTorch 2.12 is the last
# version whose headers these kernels compile with.
.venv-ops/ready: requirements/mminstall.txt requirements/runtime.txt $(OPENCV)/pyproject.toml setup.py
	$(NEW_VENV) .venv-ops
	.venv-ops/bin/$(INSTALL) --upgrade pip $(SETUPTOOLS) wheel ninja pytest
	.venv-ops/bin/$(INSTALL) torch==2.12.1 torchvision==0.27.1
	.venv-ops/bin/$(NO_OPENCV)
	.venv-ops/bin/$(INSTALL) $(OPENCV)
	MMCV_WITH_OPS=1 .venv-ops/bin/$(INSTALL) --no-cache-dir --no-build-isolation $$(grep onedl-mmcv requirements/mminstall.txt)
	.venv-ops/bin/$(INSTALL) -r requirements/mminstall.txt -r requirements/runtime.txt
	.venv-ops/bin/$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

test-ops: .venv-ops/ready
	.venv-ops/bin/python -m pytest tests/ops/compare.py

# Tests the page of tools/analysis/explain.py in Chromium; SCREENSHOTS=FOLDER keeps what it looks like.
CHROMIUM ?= $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))

$(VENV)/browser: $(VENV)/full requirements/browser.txt
	$(BIN)/$(INSTALL) -r requirements/browser.txt
	@touch $@

test-browser:
	@test -n "$(CHROMIUM)" || { echo "error: test-browser needs Chromium: install it (apt install chromium), or pass CHROMIUM=PATH" >&2; exit 1; }
	@$(MAKE) --no-print-directory $(VENV)/browser
	CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest tests/analysis/browser.py

# Counts and measures what the networks cost; a few minutes on a CPU. For figures to report, see "Speed" in README.md.
BENCH := work_dirs/bench

bench: $(VENV)/light
	mkdir -p $(BENCH)
	$(BIN)/python tools/analysis/complexity.py --all --stages --bias --json $(BENCH)/complexity.json --csv $(BENCH)/complexity.csv
	$(BIN)/python tools/analysis/throughput.py --all-systems --batch-sizes 8 --repeats 5 --sample-s 0 \
		--json $(BENCH)/throughput.json --plot $(BENCH)/throughput.png

# All that needs a GPU, with one command, in nine minutes; DATA is a folder with CIFAR-100 (benchmarks/README.md).
DATA := data/cifar100

bench-gpu: $(VENV)/full
	$(BIN)/python -m benchmarks.gpu --out $(BENCH)/gpu --data $(DATA)

# Tests which faults a training survives, with mmsb and with stock mmengine; about an hour on two cores.
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

# Recounts all shipped models; review the diff by hand.
golden: $(VENV)/full
	$(BIN)/python tools/analysis/complexity.py --all --json tests/golden/complexity.json

# Builds the site offline into docs/_build/html, with warnings as errors.
$(VENV)/docs: $(VENV)/light requirements/docs.txt
	$(BIN)/$(INSTALL) -r requirements/docs.txt
	@touch $@

docs: $(VENV)/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Builds sdist and wheel into dist/, checks them, and uses the wheel. Only the wheel is installed in its environment, which
# borrows the dependencies from .venv through a .pth file to save gigabytes. It does not see the editable mmsb in .venv.
$(VENV)/dist: $(VENV)/light requirements/dist.txt
	$(BIN)/$(INSTALL) -r requirements/dist.txt
	@touch $@

WHEEL_VENV := .venv-wheel
USE_WHEEL := import torch, mmsb; from mmsb.models import SBResNet; \
	print(mmsb.__version__, SBResNet(depth=50)(torch.rand(1, 3, 64, 64))[-1].shape)

dist: $(VENV)/dist
	rm -rf dist $(WHEEL_VENV)
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m venv --without-pip $(WHEEL_VENV)
	$(BIN)/python -m pip --disable-pip-version-check --python $(WHEEL_VENV)/bin/python install --quiet --no-deps dist/*.whl
	$(BIN)/python -c "import sys; print(*(path for path in sys.path if path.endswith('site-packages')), sep='\n')" > \
		$$($(WHEEL_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth
	$(WHEEL_VENV)/bin/python -I -c "import mmsb; assert '$(WHEEL_VENV)' in mmsb.__file__, mmsb.__file__"
	$(WHEEL_VENV)/bin/python -I -c "$(USE_WHEEL)"
