"""Exact verification of packed networks: `verify.py` is its command line.

`constraints` and `encoding` turn a network around one image into linear constraints on truth
values, `solver` asks clingo, `square_search` looks for a counterexample without it, `workers` runs
solvers in processes of their own, `results` keeps verdicts and files.
"""
