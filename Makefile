# `make help` lists the targets. CONFIG, OUT and ARGS are passed through, e.g. make train CONFIG=x.yaml ARGS="--n_layer=6"
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= explorations/quickstart.yaml
OUT ?= out
ARGS ?=
VIEW ?= ckpts
BENCH ?= benchmarks/bench_kernels.py
BASE ?=

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/' | expand -t 14

setup: .venv/installed  ## virtual environment with everything a CPU user can use
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[eval,hf,search,evolve,ray,slurm,synth,sentencepiece,dev]'
	@touch $@

train: setup  ## train CONFIG, sample, write the cost report
	$(BIN)/gptcore train $(CONFIG) $(ARGS)
sample: setup  ## text from the run OUT
	$(BIN)/gptcore sample --out_dir $(OUT) $(ARGS)
eval: setup  ## scores of the run OUT: ARGS="--tasks shakespeare_line" or ARGS="--text FILE"
	$(BIN)/gptcore eval --out_dir $(OUT) $(ARGS)
report: setup  ## what CONFIG costs in hardware
	$(BIN)/gptcore ppa report $(CONFIG) $(ARGS)
compare: setup  ## what configurations cost, side by side: ARGS="a.yaml b.yaml --hardware edge-sky130"
	$(BIN)/gptcore ppa compare $(ARGS)
calibrate: setup  ## synthesise the hardware operators on a cell library: ARGS="--liberty FILE"
	$(BIN)/gptcore ppa calibrate $(ARGS)
validate: setup  ## estimates against published figures: ARGS="--data DIR"
	$(BIN)/gptcore ppa validate $(ARGS)
search: setup  ## the search that CONFIG describes, e.g. explorations/search/params_small.yaml
	$(BIN)/gptcore search $(CONFIG) $(ARGS)
sweep: setup  ## the runs that CONFIG lists, e.g. explorations/sweeps/softmax_norm.yaml
	$(BIN)/gptcore sweep $(CONFIG) $(ARGS)
monitor: setup  ## watch the search below OUT
	$(BIN)/gptcore monitor $(OUT) $(ARGS)
inspect: setup  ## runs below OUT; VIEW=activations, weights or softmax looks into the run OUT
	$(BIN)/gptcore inspect $(VIEW) $(OUT) $(ARGS)

test: setup  ## the test suite (what CI runs), a process a core
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal
check: setup  ## lint, format, types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
check-all: check  ## every test, the slow and the networked ones too
	$(BIN)/pytest -m ''
bench: setup  ## kernels and references, timed: table and picture in OUT; BENCH=benchmarks for all benchmarks
	@mkdir -p $(OUT)
	$(BIN)/pytest $(BENCH) -o python_files='bench_*.py' --benchmark-enable --benchmark-json=$(OUT)/bench.json -s -rs -m '' $(ARGS); \
	code=$$?; $(BIN)/python -m benchmarks.kernel_table $(OUT)/bench.json && exit $$code
bench-compare:  ## ratios of new times to those in BASE, a JSON that bench wrote
	@test -f "$(BASE)" || { echo "make bench-compare BASE=FILE: no file '$(BASE)'; make bench writes one, OUT/bench.json" >&2; exit 2; }
	$(MAKE) bench
	$(BIN)/python -m benchmarks.kernel_table $(OUT)/bench.json $(BASE)

.PHONY: help setup train sample eval report compare calibrate validate search sweep monitor inspect test check check-all bench bench-compare
