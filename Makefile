# Everything works in .venv at the root; each target makes what it needs and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Compiled wheels outlive the checkout: the ops of mmcv take about 15 minutes on 2 cores.
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mmsb/wheels

.PHONY: demo test test-stock lint format golden bench chaos clean
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
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# The full stack: mmcv with its ops (detection needs them) and the development tools.
$(VENV)/full: $(VENV)/light requirements/dev.txt tools/build_ops_wheel.sh
	$(PIP) install --quiet -r requirements/dev.txt
	wheel=$$(PYTHON=$(BIN)/python WHEELS='$(WHEELS)' tools/build_ops_wheel.sh) && \
		$(PIP) install --quiet --no-deps --force-reinstall "$$wheel"
	@touch $@
