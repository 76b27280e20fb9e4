# make demo           sets everything up, trains on the sample photographs for some minutes, draws runs/demo/report.png
# make test           sets everything up; lint, types and unit tests
# make integration    the tests that need a Ray cluster, a browser, Prometheus or kubectl
# make soak           the tests that take minutes
# make long           the tests that are too slow for CI
# make gpu            the tests that need GPUs, in the Python that has them
# make lint, format   ruff and mypy; what ruff can fix
# make audit          known vulnerabilities in the versions of constraints.txt (needs PyPI)
# make serve RUN=runs/demo     the app with a run's model (default: the embedded one), at http://127.0.0.1:8000
# make monitor RUN=runs/demo   a Prometheus on this machine that scrapes a run, with our alerts
# make manifests      regenerates the manifests that repeat k8s/raycluster.yaml, and the dashboards
# make constraints    writes constraints.txt from what is installed

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# More than the two cores of a small machine: a quarter of the time is waiting.
WORKERS ?= 4

.PHONY: audit demo test integration integration-cluster integration-other soak long gpu lint format serve monitor prometheus kubectl chromium manifests constraints clean

demo: $(READY)
	$(BIN)/python -m deblur.demo

test: lint
	$(BIN)/python -m pytest -n $(WORKERS)

# Two clusters of several nodes at once would time out on two cores: their tests run one by one, beside the others.
integration: $(READY) prometheus kubectl chromium
	$(MAKE) --no-print-directory --jobs 2 --output-sync integration-cluster integration-other

QUICK := not soak and not long and not gpu

integration-cluster:
	$(BIN)/python -m pytest -m 'integration and cluster and $(QUICK)'

integration-other:
	$(BIN)/python -m pytest -m 'integration and not cluster and $(QUICK)'

soak: $(READY) prometheus kubectl
	$(BIN)/python -m pytest -m soak

long: $(READY)
	$(BIN)/python -m pytest -m long

serve: $(READY)
	$(BIN)/python -m deblur.serve --model $(or $(RUN),embedded)

monitor: $(READY)
	$(BIN)/python k8s/monitoring/local.py $(RUN)

# Debian and Ubuntu have Prometheus and promtool in one package.
prometheus:
	@command -v promtool >/dev/null || { echo "installing the package prometheus"; \
	  apt-get update -qq; apt-get install -y -qq --no-install-recommends prometheus >/dev/null; } || \
	  { echo "promtool is missing: install Prometheus (as root on Debian: apt-get install prometheus)"; exit 1; }

kubectl:  # renders the overlays
	@command -v kubectl >/dev/null || { echo "installing the package kubernetes-client"; \
	  apt-get update -qq; apt-get install -y -qq --no-install-recommends kubernetes-client >/dev/null; } || true
	@kubectl kustomize k8s/overlays/spot >/dev/null || \
	  { echo "kubectl is missing or older than 1.27 (as Debian's before 13): kubernetes.io/docs/tasks/tools"; exit 1; }

chromium:  # opens the app's page
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
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Runs again only when the dependencies change.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

audit:  # in an environment of its own: constraints.txt lists what is in .venv
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps

constraints: $(READY)
	$(BIN)/pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' > constraints.txt

clean:
	rm -rf .venv runs
