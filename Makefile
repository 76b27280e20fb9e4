# make demo   sets everything up, trains on the sample photographs for some minutes, draws runs/demo/report.png
# make test   sets everything up, checks style, runs the quick tests
# make soak   the tests that take minutes
# make long   those for which CI has no time left
# make serve RUN=runs/demo     the app with that run's model, at http://127.0.0.1:8000
# make monitor RUN=runs/demo   a Prometheus on this machine that watches a run, with our alerts
# make manifests   writes what repeats k8s/raycluster.yaml, and the dashboards
# make gpu    the tests that need GPUs, in the Python that has them

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test soak long serve monitor prometheus kubectl chromium manifests gpu lint format constraints clean

demo: $(READY)
	$(BIN)/python -m deblur.demo

test: lint prometheus kubectl chromium
	$(BIN)/python -m pytest

soak: $(READY) prometheus kubectl
	$(BIN)/python -m pytest -m soak

long: $(READY)
	$(BIN)/python -m pytest -m long

serve: $(READY)
	$(BIN)/python -m deblur.serve --model $(or $(RUN),runs/demo)

monitor: $(READY)
	$(BIN)/python k8s/monitoring/local.py $(RUN)

# The tests ask a real Prometheus and its promtool; Debian and Ubuntu have both in one package.
prometheus:
	@command -v promtool >/dev/null || { echo "installing the package prometheus"; \
	  apt-get update -qq; apt-get install -y -qq --no-install-recommends prometheus >/dev/null; } || \
	  { echo "promtool is missing: install Prometheus (as root on Debian: apt-get install prometheus)"; exit 1; }

# The tests render the overlays with it.
kubectl:
	@command -v kubectl >/dev/null || { echo "installing the package kubernetes-client"; \
	  apt-get update -qq; apt-get install -y -qq --no-install-recommends kubernetes-client >/dev/null; } || true
	@kubectl kustomize k8s/overlays/spot >/dev/null || \
	  { echo "kubectl is missing or older than 1.27 (as Debian's before 13): kubernetes.io/docs/tasks/tools"; exit 1; }

# The tests use the page in it.
chromium:
	@command -v chromium >/dev/null || { echo "installing the package chromium"; \
	  apt-get update -qq; apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  { echo "chromium is missing: install it (as root on Debian: apt-get install chromium)"; exit 1; }

manifests: $(READY)
	$(BIN)/python k8s/manifests.py
	$(BIN)/python k8s/monitoring/dashboards.py

gpu:
	$(PYTHON) -m pytest -m gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Done once; again when what is to be installed changes.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

# Writes down what is installed now, names and versions alone.
constraints: $(READY)
	$(BIN)/pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' > constraints.txt

clean:
	rm -rf .venv runs
