"""Exported networks: files as functions, and in the place of a network in its library's own test."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsb.options import choose, one_line


def require_packages(names: Sequence[str]) -> None:
    """Check that packages for ONNX are installed.

    Raises:
        ImportError: they are not.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'ONNX needs {", ".join(missing)}: run `pip install {" ".join(missing)}`')


def kind_of(model: nn.Module) -> str:
    """Tell a classifier from a segmenter and a detector.

    Raises:
        ValueError: it is none of them.
    """
    if hasattr(model, 'encode_decode'):
        return 'segmenter'
    if getattr(model, 'with_rpn', False) or hasattr(model, 'bbox_head'):
        return 'detector'
    if hasattr(model, 'extract_feat') and getattr(model, 'head', None) is not None:
        return 'classifier'
    raise ValueError(f'{type(model).__name__} is no classifier, semantic segmenter or detector: only its --backbone')


def number_of_classes(model: nn.Module) -> int | None:
    """Find the number of labels that a network tells apart; None where no head of it says so.

    A segmenter with one output, whose sigmoid is compared with a threshold, tells two, whatever its `num_classes`.
    """
    heads = (
        getattr(model, 'decode_head', None),
        getattr(getattr(model, 'roi_head', None), 'bbox_head', None),
        getattr(model, 'bbox_head', None),
        getattr(model, 'head', None),
    )
    for head in heads:
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        if hasattr(head, 'num_classes'):
            return 2 if getattr(head, 'out_channels', None) == 1 else int(head.num_classes)
    return None


def is_multi_label(model: nn.Module) -> bool:
    """Tell whether a classifier predicts any number of classes for an image."""
    return any('MultiLabel' in kind.__name__ for kind in type(getattr(model, 'head', None)).__mro__)


def _excludes(model: nn.Module, logits: Tensor) -> bool:
    """Return whether one class excludes the others, so that scores are a softmax over them."""
    return logits.shape[1] > 1 and not is_multi_label(model)


def to_scores(model: nn.Module, logits: Tensor) -> Tensor:
    return logits.softmax(1) if _excludes(model, logits) else logits.sigmoid()


def to_logits(model: nn.Module, scores: Tensor) -> Tensor:
    """Invert `to_scores`, up to a constant that softmax ignores."""
    tiny = torch.finfo(scores.dtype).tiny
    return scores.clamp(min=tiny).log() if _excludes(model, scores) else scores.logit(eps=1e-7)


class ProgramFile:
    """A `.pt2` file as a function from images to named tensors."""

    def __init__(self, path: str | Path):
        with open(path, 'rb') as file:
            self.module = torch.export.load(file).module()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return self.module(images)


class OnnxFile:
    """An `.onnx` file as a function from images to named tensors, in onnxruntime on the CPU.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: onnxruntime can't read the file.
    """

    def __init__(self, path: str | Path):
        require_packages(['onnxruntime'])
        import onnxruntime  # an optional package

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        except Exception as error:  # any of the runtime's own
            raise ValueError(f'{str(path)!r} is not an ONNX file that onnxruntime reads: {one_line(error)}') from error
        self.names = [output.name for output in self.session.get_outputs()]
        self.metadata = self.session.get_modelmeta().custom_metadata_map

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        values = self.session.run(None, {'images': images.cpu().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(self.names, values, strict=True)}


def run_in_onnxruntime(model: nn.Module, path: str | Path) -> None:
    """Let an exported file compute the logits of a network, whose own preprocessing and post-processing stay.

    Args:
        model: the network of the config, changed in place; its weights are not used.
        path: file of `export`, a classifier or segmenter.

    Raises:
        ValueError: the file is of another kind of network.
    """
    file = OnnxFile(path)
    kind = choose(f'what {str(path)!r} contains', file.metadata.get('kind'), ('classifier', 'segmenter'))
    if kind_of(model) != kind:
        raise ValueError(f'{str(path)!r} is a {kind}, and the network of the config is a {kind_of(model)}')
    mean, std = (torch.tensor(json.loads(file.metadata.get(key, '[0]'))).view(-1, 1, 1) for key in ('mean', 'std'))
    raw = file.metadata['input'].startswith('raw') and 'mean' in file.metadata

    def logits(images: Tensor) -> Tensor:
        pixels = images.cpu() * std + mean if raw else images
        (value,) = file(pixels).values()
        value = value.to(images.device)
        return to_logits(model, value) if file.metadata['output'] == 'scores' else value

    if kind == 'segmenter':
        model.encode_decode = lambda images, batch_img_metas: logits(images)
    else:
        model.extract_feat = lambda images, *_, **__: images
        model.head.forward = logits
