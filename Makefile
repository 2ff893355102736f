# Everything runs in a virtual environment of its own, made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

# What users need. Installs again only when the packaging changed.
$(VENV)/.installed: setup.py pyproject.toml
	@echo "Installing PyTorch and this package into $(VENV): some minutes, up to 6 GB."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# What developers need besides: pytest, ruff and the like.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

quickstart: $(VENV)/.installed
	@echo "1 of 3: generate 2,100 pictures of shapes, half a minute"
	@$(BIN)/retinanet-ext shapes --output datasets/shapes --train 2000 --val 100 --size 160 --seed 0
	@echo "2 of 3: train RetinaNet on them and evaluate it, 2 to 3 minutes on two CPU cores"
	@$(BIN)/python train_net.py --config-file configs/quick/retinanet.yaml
	@echo "3 of 3: draw what it detects"
	@$(BIN)/retinanet-ext predict --config-file output/quick --input datasets/shapes/val --output output/quick/pictures
	@$(BIN)/python -c "import json, tabulate; rows = json.load(open('output/quick/results.json'))['bbox'].items(); \
		print(tabulate.tabulate(rows, headers=['metric', 'validation set, 0-100'], floatfmt='.1f'))"
	@echo "Pictures: output/quick/pictures"
	@echo "Next, the picture of where the loss of this model is:"
	@echo "  $(BIN)/retinanet-ext imbalance --config-file output/quick/config.yaml --weights output/quick/model_final.pth"
	@echo "and then your own data: docs/own_data.md"

# A process for each core, with one thread each: twice as fast as one process with all cores.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) output datasets
