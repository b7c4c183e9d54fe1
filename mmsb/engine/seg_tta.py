"""Test-time augmentation of segmenters with one output, whose sigmoid MMSegmentation takes twice.

The network's `postprocess_result` stores scores there, and the merge takes them for logits: a sigmoid of scores is at
least 0.5, and so every pixel would be of the second class at the usual thresholds.
"""

from mmseg.models import SegTTAModel as MMSegTTAModel

from mmsb.registry import MODELS


@MODELS.register_module()
class SegTTAModel(MMSegTTAModel):
    """Merges as MMSegmentation does, the mean score of the views, but for one output too."""

    def merge_preds(self, data_samples_list: list) -> list:
        if self.module.out_channels == 1:
            for views in data_samples_list:
                for view in views:
                    view.seg_logits.data = view.seg_logits.data.logit()
        return super().merge_preds(data_samples_list)
