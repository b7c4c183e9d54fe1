"""The paper's tables on CIFAR-100, trained on one device as fast as its kernel launches allow, by the shipped configs.

`rows.py` lists what to train, `recipe.py` reads a config, `augment.py` crops and flips on the device, `trainer.py` is
the training step (eager, or one CUDA graph), `training.py` trains networks side by side and keeps their checkpoints,
`table.py` writes the results. `data.py` makes the arrays. The command and its options are in `__main__.py`.
"""
