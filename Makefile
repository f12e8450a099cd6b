# PYTHON=python3.12 make test   chooses the interpreter; 3.11, 3.12 and 3.13 are supported.
PYTHON ?= python3
TASK ?= lumbar-mr
IMAGE ?=
SUFFIX := $(if $(IMAGE),-$(IMAGE))
PY := .venv/bin/python
SEED := 20261121
KERNEL_TESTS := tests/test_kernel.py tests/test_multi_gpu.py tests/test_rehearse.py tests/test_run.py tests/test_submission.py \
	tests/test_serve.py tests/test_rehearse_served.py
# Whole files, as their tests share fixtures, in the order of tests/conftest.py and not by the number of their tests.
SHARED_OUT := -n auto --dist loadfile --no-loadscope-reorder
.PHONY: test check demo kernel kaggle-env clean

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv && $(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . && touch $@

test: .venv/ready
	$(PY) -m pytest $(SHARED_OUT)

check: .venv/ready
	$(PY) -m ruff check && $(PY) -m ruff format --check && $(PY) -m mypy
	$(PY) -m pytest $(SHARED_OUT) -m "not slow"

demo: .venv/ready
	rm -rf demo && $(PY) -m osteograde phantom $(TASK) --out demo/data --studies 0 --test 8 --seed $(SEED)
	$(PY) inference.py $(TASK) --data demo/data --out demo/submission.csv --overlays demo/overlays
	$(PY) -m osteograde score $(TASK) --data demo/data --submission demo/submission.csv

kernel: .venv/ready
	$(PY) -m osteograde kernel build $(TASK)

# The versions of Kaggle's image, about 3 GB to download: PYTHON=python3.12 make kaggle-env is what runs there, and
# PYTHON=python3.13 make kaggle-env IMAGE=2026-08 is what it moves to next.
.venv-kaggle$(SUFFIX)/ready: requirements-kaggle$(SUFFIX).txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $< && touch $@

kaggle-env: .venv-kaggle$(SUFFIX)/ready
	PYTHONPATH=src $(<D)/bin/python -m pytest $(SHARED_OUT) $(KERNEL_TESTS)

clean:
	rm -rf demo runs build src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
