# make sample   the whole pipeline on the drawn sample data set, on a CPU, in minutes
# make test     the tests
# make faults   the long ones: kills, damage and hostile input, at full length
# make bench    ours beside its peers: ORIGINAL=DIR names a checkout of the original, PICTURES=DIR photographs
# make lint     what CI checks before them
# Each sets up .venv by itself.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST_FLAGS ?= -n 2 --dist worksteal

.PHONY: sample test faults bench lint clean

$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

sample: $(VENV)/.installed
	$(RUN) process_coco.py --sample
	$(RUN) train_encoder.py --sample
	$(RUN) train_captioner.py --sample -p last
	$(RUN) evaluate_captioner.py --sample -c last
	$(RUN) caption.py --sample -c last $$(ls data/sample/val2017/*.jpg | head -n 6)

test: $(VENV)/.installed
	$(RUN) -m pytest $(PYTEST_FLAGS)

faults: $(VENV)/.installed
	$(RUN) -m pytest $(PYTEST_FLAGS) -o addopts="-q --import-mode=importlib" --timeout 1800 tests/faults

bench: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	$(RUN) benchmarks/run.py $(if $(ORIGINAL),--original $(ORIGINAL)) $(if $(PICTURES),--pictures $(PICTURES))

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) data/sample checkpoints/sample .pytest_cache .ruff_cache
