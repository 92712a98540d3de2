# Two commands do everything on a fresh machine: `make book` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
READY  := $(VENV)/.ready
BIN    := $(VENV)/bin

.PHONY: book test lab serve refresh bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[book,test,lab]" --constraint constraints.txt
	touch $@
