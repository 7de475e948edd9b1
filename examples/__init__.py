"""Models of stock Keras layers to try `survey.py` on: `python -m examples.NAME --out DIR`."""
