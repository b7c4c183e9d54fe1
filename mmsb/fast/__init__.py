"""Training small networks on one GPU as fast as its launches allow, by the configs' own recipes.

`recipe.py` reads a config, `augment.py` crops and flips on the device, `trainer.py` is the step (eager, or one CUDA
graph), `runs.py` trains many networks and seeds with checkpoints, `report.py` writes the table.
"""
