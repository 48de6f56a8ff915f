# make demo   everything set up, the demo store computed, the dashboard on 127.0.0.1:$(PORT)
# make test   lint, types and every test, in $(WORKERS) processes
# For a CUDA build of torch: make demo TORCH="torch==2.13.0 --index-url <the CUDA index of your choice>"

PYTHON ?= python3
PORT ?= 8501
STORE ?= runs/demo
STUDY ?= studies/demo.toml
TORCH ?= torch==2.13.0
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test store serve bench lint types clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Patchbay needs Python 3.11 or newer; choose one with PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

store: $(VENV)/.installed
	$(BIN)/python precompute.py $(STUDY) --store $(STORE)

serve: $(VENV)/.installed
	@echo "Dashboard: http://127.0.0.1:$(PORT)"
	$(BIN)/streamlit run app/main.py --server.address 127.0.0.1 --server.port $(PORT) --server.headless true -- --store $(STORE)

demo test: export HF_HUB_OFFLINE = 1
demo: store serve

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy engine store app pages precompute.py

test: lint types
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

bench: $(VENV)/.installed-bench
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
