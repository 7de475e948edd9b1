"""Commands beside run_bnn.py: benchmark, tables of results, workers on this machine."""
