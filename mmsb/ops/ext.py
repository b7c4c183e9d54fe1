"""The module that mmcv loads as `mmcv._ext` if it has no compiled operations; see `mmsb.ops`.

Each function has the signature of the compiled one, including output tensors that it fills in place.
"""

import logging
import os

from mmsb.ops.boxes import bbox_overlaps, nms, nms_match, softnms
from mmsb.ops.deform import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from mmsb.ops.features import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    psamask_backward,
    psamask_forward,
)
from mmsb.ops.losses import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from mmsb.ops.rois import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward

__all__ = [
    'bbox_overlaps',
    'carafe_backward',
    'carafe_forward',
    'carafe_naive_backward',
    'carafe_naive_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'psamask_backward',
    'psamask_forward',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]


def get_compiler_version() -> str:
    return 'none: mmsb.ops stands in for the compiled operations'


def get_compiling_cuda_version() -> str:
    return 'none'


def __getattr__(name: str):
    """Return a function that raises when called, for every other operation: mmcv looks up all names as it loads."""
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f'operation {name!r} is neither in mmsb.ops nor compiled: install mmcv with its compiled operations '
            '(`MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary :all: --no-cache-dir onedl-mmcv`, or a '
            'wheel of mmcv for your PyTorch)'
        )

    return missing


if os.environ.get('RANK', '0') == '0':
    logging.getLogger('mmsb').warning(
        'mmcv has no compiled operations: mmsb.ops stands in for them (MMSB_OPS=off turns this off)'
    )
