"""What the first GPU is for, in one call that ends in time: `python -m benchmarks.gpu`.

`parts.py` lists what is run, `runner.py` runs each part in a process of its own, `bits.py` and `epochs.py` are two of
the parts, and `page.py` makes docs/gpu.md from the results.
"""
