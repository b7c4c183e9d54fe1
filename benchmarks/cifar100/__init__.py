"""Training small networks on one GPU as fast as its launches allow, by the configs' own recipes.

`recipe.py` reads a config, `augment.py` crops and flips on the device, `trainer.py` is the step (eager, or one CUDA
graph), `run.py` trains one network with checkpoints, `runs.py` many, `report.py` writes the table.
"""
