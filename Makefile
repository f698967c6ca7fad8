# make sample        the whole pipeline on the drawn sample data set, on a CPU, in minutes
# make verify        whether the weights that ship caption here as they should
# make app           a page in the browser that captions your images, by the weights that ship
# make photographs   pre-training to report on photographs with captions: DATA=DIR; goes on where it was stopped
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

.PHONY: sample verify app photographs named-data test test-oldest faults bench gpu lint clean

$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# What export.py needs is tested, too.
$(VENV)/.tested: $(VENV)/.installed requirements-export.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-export.txt
	touch $@

# Every pin of the usual environment but those of torch and torchvision.
$(OLDEST)/.installed: requirements.txt requirements-dev.txt requirements-export.txt requirements-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -hvE '^(-r|torch|torchvision)\b' requirements.txt requirements-dev.txt requirements-export.txt | \
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

app: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-app.txt
	$(RUN) app.py

# DATA is a data root, such as `python process_coco.py --own FLICKR8K` makes; its name is that of the checkpoints'
# folder.  RECIPE: h100, or a folder of two YAML files.  Each stage goes on with -c last once it has a checkpoint, and
# one that is done ends at once.
RECIPE ?= recipes/photographs
blank := $(subst ,, )
CHECKPOINTS ?= checkpoints/$(notdir $(subst $(blank),-,$(DATA:/=)))$(if $(filter h100,$(RECIPE)),-h100)
recipe := $(if $(filter h100,$(RECIPE)),recipes/photographs/h100,$(RECIPE))
begun = $(wildcard $(CHECKPOINTS)/$(1)/checkpoint*.pt)
train = $(RUN) train_$(1).py --data '$(DATA)' --out '$(CHECKPOINTS)' --config '$(recipe)/$(2)_config.yaml'

photographs: named-data $(if $(filter $(VENV)/%,$(RUN)),$(VENV)/.installed)
	$(call train,encoder,mae) $(if $(call begun,encoder),-c last)
	$(call train,captioner,captioner) $(if $(call begun,captioner),-c last,-p last)
	$(call train,captioner,captioner) --self-critical -c last
	$(MAKE) '$(CHECKPOINTS)/report.html'

named-data:
	@test -n "$(DATA)" || { echo "name a data root: make photographs DATA=DIR" >&2; exit 2; }

$(CHECKPOINTS)/report.html: $(call begun,self_critical)
	$(RUN) evaluate_captioner.py --data '$(DATA)' -c '$(CHECKPOINTS)/self_critical/last' \
		--encoder '$(CHECKPOINTS)/encoder/last' --report '$@'

test: $(VENV)/.tested
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
