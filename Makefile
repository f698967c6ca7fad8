# make sample        the whole pipeline on the drawn sample data set, on a CPU, in minutes
# make verify        whether the weights that ship caption here as they should
# make test          the tests
# make test-oldest   the tests again, with the oldest torch that the code supports
# make faults        the long ones: kills, damage and hostile input, at full length
# make bench         ours beside its peers: ORIGINAL=DIR names a checkout of the original, PICTURES=DIR photographs
# make gpu           all that needs a GPU, in nine minutes; RUN=python3 takes the system's Python, with no .venv
# make lint          what CI checks before them
# Each sets up .venv, or .venv-oldest, by itself.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
OLDEST := .venv-oldest
PYTEST_FLAGS ?= -n 2 --dist worksteal

.PHONY: sample verify test test-oldest faults bench gpu lint clean

$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Every pin of the usual environment but those of torch and torchvision.
$(OLDEST)/.installed: requirements.txt requirements-dev.txt requirements-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -hvE '^(-r|torch|torchvision)\b' requirements.txt requirements-dev.txt | \
		$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		-r requirements-oldest.txt -r /dev/stdin
	touch $@

sample: $(VENV)/.installed
	$(RUN) process_coco.py --sample
	$(RUN) train_encoder.py --sample
	$(RUN) train_captioner.py --sample -p last
	$(RUN) evaluate_captioner.py --sample -c last
	$(RUN) caption.py --sample -c last $$(ls data/sample/val2017/*.jpg | head -n 6)

verify: $(VENV)/.installed
	$(RUN) verify.py

test: $(VENV)/.installed
	$(RUN) -m pytest $(PYTEST_FLAGS)

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest $(PYTEST_FLAGS)

faults: $(VENV)/.installed
	$(RUN) -m pytest $(PYTEST_FLAGS) -o addopts="-q --import-mode=importlib" --timeout 1800 tests/faults

bench: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	$(RUN) benchmarks/run.py $(if $(ORIGINAL),--original $(ORIGINAL)) $(if $(PICTURES),--pictures $(PICTURES))

OUT ?= results/gpu
gpu: $(if $(filter $(VENV)/%,$(RUN)),$(VENV)/.installed)
	$(RUN) benchmarks/gpu.py --out "$(OUT)" $(if $(ONLY),--only $(ONLY)) $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(ORIGINAL),--original $(ORIGINAL)) $(if $(PACK),--pack $(PACK)) $(if $(SPEEDRUN),--speedrun '$(SPEEDRUN)')

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) $(OLDEST) data/sample checkpoints/sample .pytest_cache .ruff_cache
