# make app   installs into .venv and opens the page on http://127.0.0.1:7860
# make test  installs the test extra and a browser, then checks the style and runs every test
# make screenshots  takes the README's pictures of the page
# make timing       prints how quick the page is in a browser

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python

SHELL := bash
.SHELLFLAGS := -eo pipefail -c

# pip's own log is long; one line a package says enough.
INSTALL := $(PY) -m pip --disable-pip-version-check install
BRIEFLY := awk '/^Collecting/ { print "  " $$2; fflush() } /^Installing collected/ { print "  unpacking"; fflush() }'

.PHONY: app test lint browser screenshots timing clean

app: $(VENV)/.installed
	@echo "diffad: starting; loading the models takes some seconds"
	@$(PY) app.py

test: $(VENV)/.installed-test browser lint
	@$(PY) -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-test
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit("diffad needs Python 3.10 or newer: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	@echo "diffad: making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# The stamps are newer than pyproject.toml once installed, so that the next call starts at once.
$(VENV)/.installed: pyproject.toml | $(PY)
	@echo "diffad: installing (PyTorch is large; a few minutes the first time)"
	@$(INSTALL) -e . | $(BRIEFLY)
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(PY)
	@echo "diffad: installing with the test extra (a few minutes the first time)"
	@$(INSTALL) -e ".[test]" | $(BRIEFLY)
	@touch $@ $(VENV)/.installed

BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
HAVE_BROWSER := for name in $(BROWSERS); do "$$name" --version >/dev/null 2>&1 && exit 0; done

# A browser for the page's tests: the system's own, else the package manager's, else Playwright's.
browser: $(VENV)/.installed-test
	@$(HAVE_BROWSER); \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "diffad: installing chromium for the page's tests"; \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium) \
			>/dev/null 2>&1; \
		$(HAVE_BROWSER); \
	fi; \
	echo "diffad: letting Playwright fetch chromium"; \
	$(PY) -m playwright install chromium

screenshots: $(VENV)/.installed-test browser
	@$(PY) tests/screenshots.py

timing: $(VENV)/.installed-test browser
	@$(PY) tests/timing.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
