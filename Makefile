# Everything runs in a virtual environment of its own, made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

# Installs again only when the packaging changed.
$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/retinanet-ext shapes --output datasets/shapes --train 2000 --val 100 --size 192 --seed 0
	$(BIN)/python train_net.py --config-file configs/quick/retinanet.yaml
	$(BIN)/retinanet-ext predict --config-file output/quick/config.yaml --weights output/quick/model_final.pth \
		--input datasets/shapes/val --output output/quick/pictures
	@$(BIN)/python -c "import json, tabulate; rows = json.load(open('output/quick/results.json'))['bbox'].items(); \
		print(tabulate.tabulate(rows, headers=['metric', 'validation set, 0-100'], floatfmt='.1f'))"
	@echo "pictures: output/quick/pictures"

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) output datasets
