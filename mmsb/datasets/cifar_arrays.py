"""CIFAR-100 from train.npz and test.npz for MMPretrain: `type='mmsb.CIFAR100Arrays'` instead of `CIFAR100`."""

from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.categories import CIFAR100_CATEGORIES

from mmsb.datasets import cifar
from mmsb.options import known_options
from mmsb.registry import DATASETS


@DATASETS.register_module()
class CIFAR100Arrays(BaseDataset):
    """CIFAR-100 as written by mmsb.datasets.cifar. MMPretrain's own dataset accepts only the exact official files.

    Args:
        data_root: folder with train.npz and test.npz.
        split: 'train' or 'test'.
        pipeline: transforms.
        first_classes: keep only the first classes, this many, for a short run; None keeps all.
        test_mode: see MMPretrain's BaseDataset.
        indices: see MMPretrain's BaseDataset.

    Raises:
        FileNotFoundError, ValueError: as in mmsb.datasets.cifar.load.
    """

    METAINFO = {'classes': CIFAR100_CATEGORIES}

    @known_options
    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        pipeline: tuple = (),
        first_classes: int | None = None,
        test_mode: bool = False,
        indices: int | list[int] | None = None,
    ):
        self.split = split
        self.first_classes = first_classes
        super().__init__(ann_file='', data_root=data_root, pipeline=pipeline, test_mode=test_mode, indices=indices)

    def load_data_list(self) -> list[dict]:
        images, labels = cifar.load(self.data_root, self.split, self.first_classes)
        return [dict(img=image, gt_label=int(label)) for image, label in zip(images, labels, strict=True)]
