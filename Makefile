# Two commands do everything on a fresh machine: `make book` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
READY  := $(VENV)/.ready
BIN    := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope
NBVAL  := $(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout 120 --nbval-sanitize-with tests/sanitize.cfg chapters

.PHONY: book test chapters lab serve refresh bench repository clean

book: $(READY)  ## build the HTML book and print its path
	$(BIN)/jupyter-book build . -W -n --keep-going
	@echo "the book: $(CURDIR)/_build/html/index.html"

test: $(READY)  ## lint, unit tests, doctests, every cell of every chapter
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(PYTEST) --doctest-modules --cov=qtorch_tutorial --cov-report= qtorch_tutorial tests
	$(NBVAL) --cov=qtorch_tutorial --cov-append --cov-report=term --cov-fail-under=95

chapters: $(READY)  ## every cell of every chapter: run it, compare what it shows
	$(NBVAL)

lab: $(READY)  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab chapters

serve: book  ## serve the built book on loopback
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

refresh: $(READY)  ## run all chapters in place and normalize them
	$(BIN)/python tools/refresh.py

bench: $(READY)  ## print the performance table
	$(BIN)/python tools/bench.py

repository: $(READY)  ## make repository URL=https://github.com/you/quantized-torch
	$(BIN)/python tools/set_repository.py $(URL)

clean:  ## remove what was built; the environment stays
	rm -rf _build dist build *.egg-info

# A file target: it runs again only when what it installs has changed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[book,test,lab]" --constraint constraints.txt
	touch $@
