# One door for people and CI. `make serve` and `make test` set up everything that they need.

VENV := .venv
PYTHON := $(VENV)/bin/python
SERVE := $(VENV)/.serve.stamp
TEST := $(VENV)/.test.stamp

.PHONY: help serve test fleet image check format lock clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

serve: $(SERVE) ## set up if needed, and serve the models of model_store/ on port 8000
	$(VENV)/bin/ternaus serve

test: $(TEST) ## set up if needed, and run the tests
	$(PYTHON) scripts/test.py

fleet: $(TEST) ## a fleet behind a real balancer; installs Debian packages
	docker/fleet $(PYTHON)

image: ## build the CPU image without a Docker daemon, and start it; installs Debian packages
	docker/prove-image

check: $(TEST) ## linters and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(TEST) ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

lock: $(TEST) ## resolve the dependencies anew and write them down with hashes
	scripts/lock

$(SERVE): requirements/serve.txt requirements/uv.txt pyproject.toml scripts/setup
	scripts/setup $(VENV) serve
	@touch $@

$(TEST): requirements/test.txt $(SERVE)
	scripts/setup $(VENV) test
	@touch $@

clean: ## remove what can be made again
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
