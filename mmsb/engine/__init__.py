from mmsb.engine.checkpoint import CheckpointHook
from mmsb.engine.guard import GuardHook
from mmsb.engine.logger import LoggerHook
from mmsb.engine.loops import EpochBasedTrainLoop, IterBasedTrainLoop
from mmsb.engine.optimizer import Bf16OptimWrapper, MergedGroups
from mmsb.engine.progress import ProgressHook
from mmsb.engine.runner import SafeRunner
from mmsb.engine.speed import SpeedHook

__all__ = [
    'Bf16OptimWrapper',
    'CheckpointHook',
    'EpochBasedTrainLoop',
    'GuardHook',
    'IterBasedTrainLoop',
    'LoggerHook',
    'MergedGroups',
    'ProgressHook',
    'SafeRunner',
    'SpeedHook',
]
