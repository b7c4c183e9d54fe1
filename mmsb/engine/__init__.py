from mmsb.engine.checkpoint import CheckpointHook
from mmsb.engine.guard import GuardHook
from mmsb.engine.logger import LoggerHook
from mmsb.engine.loops import EpochBasedTrainLoop, IterBasedTrainLoop
from mmsb.engine.progress import ProgressHook
from mmsb.engine.runner import SafeRunner

__all__ = [
    'CheckpointHook',
    'EpochBasedTrainLoop',
    'GuardHook',
    'IterBasedTrainLoop',
    'LoggerHook',
    'ProgressHook',
    'SafeRunner',
]
