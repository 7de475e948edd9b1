# A fresh machine needs Python 3.11 to 3.13, make and a package index; everything else is below.
PYTHON ?= python3
BIN = .venv/bin
DEMO = output/demo/network.keras

PAPER = output/reproduction/network.keras

.PHONY: bench cluster-demo report reproduce demo test test-all notebooks lint
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/python run_bnn.py --data_set digits --out_dir $(dir $(DEMO)) --conv 64 64 128 \
		--max_pool 0 1 0 --fc 128 --epochs 30 --lr_start 5e-3 --lr_end 1e-4

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

test-all: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# make report CHECKPOINT=output/cifar-10_binary/network.keras; data from BNN_DATA_DIR or data/
report: .venv/installed
	$(BIN)/python report.py "$(CHECKPOINT)"

# The paper's network from data to figures. What was interrupted goes on where it was.
reproduce: .venv/installed
	$(BIN)/python benchmark.py --estimate fast
	$(BIN)/python run_bnn.py --recipe fast --out_dir $(dir $(PAPER)) --track_geometry --resume
	$(MAKE) $(dir $(PAPER))report.md
	BNN_CHECKPOINT=$(PAPER) $(MAKE) notebooks

$(dir $(PAPER))report.md: $(PAPER)
	$(BIN)/python report.py $(PAPER)

# Two workers on this machine, as TF_CONFIG makes them on two.
cluster-demo: .venv/installed
	$(BIN)/python cluster.py local 2 run_bnn.py --data_set digits --out_dir output/cluster_demo \
		--conv 32 32 64 --max_pool 0 1 0 --fc 64 --batch_size 100 --epochs 15 \
		--lr_start 5e-3 --lr_end 1e-4

# A quarter of an hour; make bench FLAGS=--quick takes two minutes.
bench: .venv/installed
	$(BIN)/python benchmark.py $(FLAGS)

notebooks: $(DEMO)
	mkdir -p output/notebooks
	for notebook in hd_figures gen_plots; do \
		$(BIN)/jupyter-execute --output=output/notebooks/$$notebook.ipynb $$notebook.ipynb || exit 1; \
	done

# The notebooks' fallback where no trained network or its data set is at hand.
$(DEMO): | .venv/installed
	$(MAKE) demo

.venv/installed: requirements.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
