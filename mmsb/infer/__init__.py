"""Run a trained network on images and videos.

`inputs` finds and reads them, `inferencer` predicts, and `results` writes pictures and one JSON file for each run.
"""

from .inferencer import Inferencer, Prediction
from .results import write_predictions

__all__ = ['Inferencer', 'Prediction', 'write_predictions']
