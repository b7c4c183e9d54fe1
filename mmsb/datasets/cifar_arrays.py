"""CIFAR-100 out of train.npz and test.npz, for MMPretrain: `type='mmsb.CIFAR100Arrays'` in the place of `CIFAR100`."""

from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.categories import CIFAR100_CATEGORIES

from mmsb.datasets import cifar
from mmsb.options import known_options
from mmsb.registry import DATASETS


@DATASETS.register_module()
class CIFAR100Arrays(BaseDataset):
    """CIFAR-100 as mmsb.datasets.cifar writes it. MMPretrain's own wants the official files, byte for byte.

    Args:
        data_root: folder of train.npz and test.npz.
        split: 'train' or 'test'.
        pipeline: transforms.
        first_classes: keep only so many classes, the first ones, for a short run; None: all.
        test_mode: see MMPretrain's BaseDataset.
        indices: see MMPretrain's BaseDataset.

    Raises:
        FileNotFoundError, ValueError: as mmsb.datasets.cifar.load.
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
