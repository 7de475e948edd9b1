# A fresh machine needs Python 3.11 to 3.13, make and a package index; everything else is below.
PYTHON ?= python3
BIN = .venv/bin
DEMO = output/demo/network.keras

PAPER = output/reproduction/network.keras

.PHONY: bench cluster-demo report reproduce demo test test-all notebooks lint help
.DELETE_ON_ERROR:

demo: .venv/installed  ## train a small network on digits: under a minute
	$(BIN)/python run_bnn.py --data_set digits --out_dir $(dir $(DEMO)) --conv 64 64 128 \
		--max_pool 0 1 0 --fc 128 --epochs 30 --lr_start 5e-3 --lr_end 1e-4 --overwrite

test: .venv/installed  ## the quick tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: .venv/installed  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/installed  ## style and form of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Data from BNN_DATA_DIR or data/.
report: .venv/installed  ## judge the claims on CHECKPOINT=output/cifar-10_binary/network.keras
	$(BIN)/python report.py "$(CHECKPOINT)"

# What was interrupted goes on where it was.
reproduce: .venv/installed  ## the paper's network from data to figures: about 8 hours on two cores
	$(BIN)/python -m tools.benchmark --estimate fast
	$(BIN)/python run_bnn.py --recipe fast --out_dir $(dir $(PAPER)) --track_geometry --resume
	$(MAKE) $(dir $(PAPER))report.md
	BNN_CHECKPOINT=$(PAPER) $(MAKE) notebooks

$(dir $(PAPER))report.md: $(PAPER)
	$(BIN)/python report.py $(PAPER)

cluster-demo: .venv/installed  ## two workers on this machine, as TF_CONFIG makes them on two
	$(BIN)/python -m tools.workers local 2 run_bnn.py --data_set digits \
		--out_dir output/cluster_demo --conv 32 32 64 --max_pool 0 1 0 --fc 64 \
		--batch_size 100 --epochs 15 --lr_start 5e-3 --lr_end 1e-4 --overwrite

bench: .venv/installed  ## training and inference against the clock: 15 minutes, or 2 with FLAGS=--quick
	$(BIN)/python -m tools.benchmark $(FLAGS)

notebooks: $(DEMO)  ## run the notebooks, on the demo's network or on BNN_CHECKPOINT
	mkdir -p output/notebooks
	for notebook in hd_figures gen_plots survey roads; do \
		$(BIN)/jupyter-execute --output=output/notebooks/$$notebook.ipynb $$notebook.ipynb || exit 1; \
	done

# The notebooks' fallback where no trained network or its data set is at hand.
$(DEMO): | .venv/installed
	$(MAKE) demo

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.venv/installed: requirements.txt
	@echo "Setting up .venv: about 2.7 GB on the disk, one to three and a half minutes."
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt
	touch $@
