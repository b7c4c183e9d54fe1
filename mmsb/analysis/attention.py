"""Class-activation maps, by the library grad-cam."""

import importlib.util
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mmsb.analysis.trained import Picture, backbone_of, kind_or_network
from mmsb.exported import number_of_classes
from mmsb.options import choose

METHODS = ('GradCAM', 'GradCAMPlusPlus', 'XGradCAM', 'LayerCAM', 'HiResCAM', 'EigenCAM')


def require_library() -> None:
    """Check that grad-cam is installed.

    Raises:
        ImportError: it is not.
    """
    if importlib.util.find_spec('pytorch_grad_cam') is None:
        raise ImportError("class-activation maps need grad-cam: run `pip install 'grad-cam<1.5'`")


class Scores(nn.Module):
    """A network as grad-cam calls it: images to one score for each class, (B, classes).

    The score of a segmenter is that of the class summed over the pixels that the network gives to it; of a network
    without classes, the mean of its last features.
    """

    def __init__(self, model: nn.Module, kind: str):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, images: Tensor) -> Tensor:
        """Map images, (B, C, H, W), to scores."""
        if self.kind == 'classifier':
            return self.model.head(self.model.extract_feat(images))
        if self.kind == 'segmenter':
            logits = self.model.encode_decode(images, [dict(img_shape=images.shape[2:])])
            if logits.shape[1] == 1:  # of two classes, the second
                threshold = self.model.decode_head.threshold
                logits = logits - math.log(threshold / (1 - threshold))
                logits = torch.cat([-logits, logits], 1)
            labels = logits.argmax(1, keepdim=True)
            chosen = torch.zeros_like(logits).scatter(1, labels, 1)
            return (logits * chosen).sum((2, 3))
        return self.model.backbone(images)[-1].mean((1, 2, 3))[:, None]


def choose_class(model: nn.Module, name: str | None, classes: Sequence[str]) -> int | None:
    """Find the index of a class by its name or number; None: the one with the highest score.

    Raises:
        ValueError: for an unknown class, and for a class of a network that has none here.
    """
    if name is None:
        return None
    kind = kind_or_network(model)
    if kind not in ('classifier', 'segmenter'):
        raise ValueError(f'a class is for classifiers and segmenters, and this is a {kind}: EigenCAM needs none')
    count = number_of_classes(model) or len(classes)
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < count:
        return int(name)
    known = ', '.join(classes[:10]) + (', ...' if len(classes) > 10 else '')
    raise ValueError(f'class must be 0 to {count - 1}{f" or one of {known}" if classes else ""}, got {name!r}')


def activation_map(
    model: nn.Module, picture: Picture, layer: str, method: str | None = None, label: int | None = None
) -> tuple[np.ndarray, str]:
    """Compute where the features of a layer speak for a class.

    Args:
        model: the network, in evaluation mode.
        picture: the picture.
        layer: name of a module of the backbone, such as 'layer3'.
        method: one of METHODS; None: GradCAM, and EigenCAM (which needs no class) for detectors.
        label: index of the class; None: the one with the highest score.

    Returns:
        the map, from 0 to 1, (H, W), and the method.

    Raises:
        ImportError: grad-cam is missing.
        ValueError: for an unknown layer or method, and one that needs classes where there are none.
    """
    require_library()
    import pytorch_grad_cam  # an optional package
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    kind = kind_or_network(model)
    has_classes = kind in ('classifier', 'segmenter')
    method = method or ('GradCAM' if has_classes else 'EigenCAM')
    choose('method' if has_classes else f'method for a {kind}', method, METHODS if has_classes else ('EigenCAM',))
    backbone = backbone_of(model)
    names = [name for name, _ in backbone.named_modules() if name]
    if layer not in names:
        stages = ', '.join(name for name in names if '.' not in name)
        raise ValueError(f'layer must be a module of the backbone ({stages}, or one inside of them), got {layer!r}')
    targets = None if label is None else [ClassifierOutputTarget(label)]
    images = picture.inputs.clone().requires_grad_(True)  # so that frozen layers have a gradient too
    found = None
    method_of_library = getattr(pytorch_grad_cam, method)
    with method_of_library(model=Scores(model, kind), target_layers=[backbone.get_submodule(layer)]) as cam:
        found = cam(images, targets)[0]
    if found is None:  # the library swallows an IndexError
        raise ValueError(f'the network does not call {layer!r} itself: name a module inside of it')
    return found, method
