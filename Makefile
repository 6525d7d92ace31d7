# `make quickstart` and `make test` create .venv themselves and are incremental.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RAY_AUTH_MODE ?= token
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: quickstart test test-s3 test-browser lint bench chaos node-loss clean bench-serve serve-faults serve-soak serve-autoscale

quickstart: $(VENV)/quickstart.ok
	$(BIN)/python jobs/quickstart.py $(if $(STORE),--store $(STORE)) $(ARGS)

test: $(VENV)/test.ok
	$(BIN)/python -m pytest $(ARGS)

# Needs Debian's chromium and chromium-driver; skipped with a message without them.
test-browser: $(VENV)/test.ok
	$(BIN)/python -m pytest -m browser tests/test_page_browser.py $(ARGS)

# The store on a real Ceph (Debian packages, installed where they may be), also behind a proxy that spoils every fifth call.
test-s3: $(VENV)/test.ok
	infra/dev/test_s3.sh $(BIN)/python

lint: $(VENV)/dev.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/bench.ok
	$(BIN)/oral-ray bench all
	$(BIN)/python infra/dev/bench all
	$(BIN)/python infra/dev/bench growth folder=docs/results/bench

# Measurements of the service: out/bench/serve*.json, copies under docs/results. STORE is that of `make quickstart`.
bench-serve serve-faults serve-soak serve-autoscale: $(VENV)/quickstart.ok
	PYTHONPATH=. $(BIN)/python infra/dev/serve/$(MEASURE_$@).py --store $(or $(STORE),oral-store) $(ARGS)
MEASURE_bench-serve = speed
MEASURE_serve-faults = faults
MEASURE_serve-soak = soak
MEASURE_serve-autoscale = autoscale

# Kills the nightly job at every write it makes, races it, runs it behind a failing S3 server: out/chaos.json.
chaos: $(VENV)/test.ok
	$(BIN)/python infra/dev/chaos.py $(ARGS)

# Loses a worker, a node and the head of a training run on several Ray nodes of this machine: out/node_loss.json.
node-loss: $(VENV)/test.ok
	PYTHONPATH=. $(BIN)/python infra/dev/node_loss.py $(ARGS)

clean:
	rm -rf $(VENV) build out *.egg-info

# One rule a set of extras; `-c` keeps pip from pulling another torch.
$(VENV)/quickstart.ok: EXTRAS = quickstart
$(VENV)/test.ok: EXTRAS = quickstart,test
$(VENV)/bench.ok: EXTRAS = quickstart,gguf,test
$(VENV)/dev.ok: EXTRAS = quickstart,test,dev
$(VENV)/%.ok: pyproject.toml infra/constraints.txt | $(VENV)/bin/python
	@echo "installing oral-ray[$(EXTRAS)] into $(VENV) (about 1.5 GB, a few minutes)"
	$(BIN)/pip install -q --disable-pip-version-check -e ".[$(EXTRAS)]" -c infra/constraints.txt
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
