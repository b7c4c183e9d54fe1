from mmsb.engine.logger import LoggerHook
from mmsb.engine.progress import ProgressHook

__all__ = ['LoggerHook', 'ProgressHook']
