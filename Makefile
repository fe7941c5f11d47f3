# make train   from a bare machine to a table of perplexities          make test    run the tests
# make check   ruff and pyright                                        make format  let ruff format the code
# make papers  both papers' tables with our kept results and plots in report/papers.md, and smoke runs (MNIST=/path/to/idx for pixel MNIST)
# make gpu   on a machine with an NVIDIA GPU: the tests that need one, then speed: results/benchmark_cuda.json and benchmark_cuda.md
# make cluster-demo   train on two hosts in a box with a 1 Gbit/s network between them (root; Debian: iproute2 openssh-server pdsh)
# CORPUS=/path/to/benchmark make train   takes that corpus instead of the news sample (a folder or the .tar.gz)

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/irnn_news.json
GPUS := $(shell nvidia-smi -L 2>/dev/null | wc -l)
RANKS ?= $(or $(filter-out 0,$(GPUS)),2)

BIN := $(abspath $(VENV))/bin
EXPERIMENT := $(basename $(notdir $(CONFIG)))
export PATH := $(BIN):$(PATH)

ifdef CORPUS
CORPUS_NAME := $(basename $(basename $(notdir $(CORPUS:/=))))
RUN ?= runs/$(EXPERIMENT)_$(CORPUS_NAME)
OPTIONS := --set corpus.kind=lm1b --set "corpus.path=$(CORPUS)" --set "tokens.directory=data/tokens_$(CORPUS_NAME)" --set "run.directory=$(RUN)"
else
RUN ?= runs/$(EXPERIMENT)
OPTIONS := --set "run.directory=$(RUN)"
endif

.PHONY: install train test test-all papers gpu no-gpu cluster-demo check format clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

train: install
	$(BIN)/python launch/preprocess.py --config $(CONFIG) $(OPTIONS)
	$(BIN)/deepspeed --num_gpus $(RANKS) launch/train.py --config $(CONFIG) $(OPTIONS)
	$(BIN)/python launch/report.py "$(RUN)"

test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-all: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "long or not long"

papers: install
	$(BIN)/python launch/papers.py --results results/papers --out report --smoke $(if $(MNIST),--mnist "$(MNIST)")

# -m gpu takes the place of pyproject's own -m, so that long ones run too. Speed is measured whatever the tests say; their status is kept.
gpu: $(if $(filter 0,$(GPUS)),no-gpu,install)
	$(BIN)/python -m pytest -m gpu; tests=$$?; \
	$(BIN)/python tools/benchmark.py --device cuda --json results/benchmark_cuda.json --table results/benchmark_cuda.md && exit $$tests

no-gpu:
	$(error make gpu: no NVIDIA GPU here (nvidia-smi -L names none); nothing was installed; use a machine that has one)

cluster-demo: install
	$(BIN)/python tools/cluster.py demo --hosts 2 --rate 1gbit

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info
