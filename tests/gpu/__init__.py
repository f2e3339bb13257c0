"""What only a GPU can show, in one run: ``python tests/gpu/run.py``."""
