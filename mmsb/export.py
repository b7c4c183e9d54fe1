"""Export of trained networks to ONNX and torch.export, with free batch, height and width, checked on the spot.

What is exported, with all batch norms folded:
    a classifier from images to scores of the classes;
    a semantic segmenter from images to scores of the classes at the size of the images;
    of a detector the backbone, neck and dense head, and of one with two stages the feature maps as well.
Everything after these (boxes, non-maximum suppression, second stages) depends on values and stays outside.
"""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmsb.exported import OnnxFile, ProgramFile, kind_of, require_packages, to_scores
from mmsb.files import write_whole
from mmsb.models.any_network import channels_of
from mmsb.models.deploy import switch_to_deploy
from mmsb.options import choose, one_line
from mmsb.version import __version__

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
FORMATS = ('.onnx', '.pt2')
INPUTS = ('normalised', 'raw')
OUTPUTS = ('logits', 'scores')
TRACED = (2, 256, 320)  # batch, height, width: no side of a feature pyramid is 1, which an export would fix
CHECKED = ((2, 144, 144), (3, 161, 225), (1, 320, 224), (1, 800, 1333))
AXES = ('batch', 'channels', 'height', 'width')
TOLERANCE = 1e-4  # of the largest value of an output
METADATA = 'mmsb.json'  # of a .pt2 file
_REASON_LENGTH = 300  # characters


class Exportable(nn.Module):
    """The part of a network that is exported: images in, a dict of tensors out.

    Attributes:
        kind: 'classifier', 'segmenter', 'detector' or 'backbone'.
        channels: C of the images.

    Args:
        model: a network of MMPretrain, MMDetection or MMSegmentation, deployed.
        backbone: export only the backbone, for a head of one's own.
        input: 'normalised' images, as the network itself reads them, or 'raw' ones: pixels from 0 to 255.
        output: 'logits', or 'scores': softmax of them, or sigmoid where the classes do not exclude each other.

    Raises:
        ValueError: for a network of another kind, and scores of what has no classes.
    """

    def __init__(self, model: nn.Module, *, backbone: bool = False, input: str = 'normalised', output: str = 'logits'):
        super().__init__()
        self.model = model
        self.kind = 'backbone' if backbone else kind_of(model)
        self.output = choose('output', output, OUTPUTS)
        if output == 'scores' and self.kind not in ('classifier', 'segmenter'):
            raise ValueError(f'output=scores is for classifiers and segmenters, and this exports a {self.kind}')
        self.raw = choose('input', input, INPUTS) == 'raw'
        self.channels = channels_of(model)
        preprocessor = getattr(model, 'data_preprocessor', None)
        self.normalises = bool(getattr(preprocessor, '_enable_normalize', False))
        if self.normalises:
            for name in ('mean', 'std'):
                self.register_buffer(name, getattr(preprocessor, name).detach().clone().float().view(-1, 1, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images, (B, C, H, W), to named tensors."""
        if self.raw and self.normalises:
            images = (images - self.mean) / self.std
        if self.kind == 'backbone':
            return _named(feature=self.model.backbone(images))
        if self.kind == 'detector':
            features = self.model.extract_feat(images)
            if getattr(self.model, 'with_rpn', False):  # the second stage reads the feature maps
                return _named(feature=features, dense=self.model.rpn_head(features))
            return _named(dense=self.model.bbox_head(features))
        if self.kind == 'classifier':
            logits = self.model.head(self.model.extract_feat(images))
        else:
            logits = self.model.encode_decode(images, [dict(img_shape=images.shape[2:])])
        return {self.output: to_scores(self.model, logits) if self.output == 'scores' else logits}

    def metadata(self) -> dict[str, str]:
        """Describe what goes in and comes out, for the file."""
        preprocessor = getattr(self.model, 'data_preprocessor', None)
        converts = any(getattr(preprocessor, key, False) for key in ('to_rgb', '_channel_conversion'))
        values = {name: getattr(self, name).flatten().tolist() for name in ('mean', 'std') if self.normalises}
        return dict(
            mmsb_version=__version__,
            kind=self.kind,
            input='raw: pixels from 0 to 255' if self.raw else 'normalised: (pixels - mean) / std',
            channels=self._channels(converts),
            **{name: json.dumps(value) for name, value in values.items()},
            output=self.output if self.kind in ('classifier', 'segmenter') else 'tensors before any post-processing',
        )

    def _channels(self, converts: bool) -> str:
        if self.channels == 1:
            return 'grey'
        loaded = "as the config's dataset loads them"
        if self.channels != 3:
            return f'{self.channels}, {loaded}'
        return 'RGB' if converts else f'{loaded}: BGR, if by OpenCV'


def _named(**outputs) -> dict[str, Tensor]:
    """Name the tensors of nested outputs by their place: `dense_0_2` is the third level of a head's first output."""
    found = {}
    for name, output in outputs.items():
        for path, value in pytree.tree_flatten_with_path(output)[0]:
            found['_'.join([name, *re.findall(r'\w+', pytree.keystr(path))])] = value
    return found


def export(
    model: nn.Module,
    out: str | Path,
    *,
    size: tuple[int, int] | None = None,
    show: Callable[[str], None] = lambda line: None,
    **options,
) -> None:
    """Export a network to a file, whole or not at all, that computes what PyTorch computes at four sizes.

    Args:
        model: a network of MMPretrain, MMDetection or MMSegmentation, on the CPU, in evaluation mode. Its batch norms
            are folded in place.
        out: the file: `.onnx`, or `.pt2` for torch.export.
        size: height and width, for a network that takes one size only; None: free.
        show: called with each line of the report.
        options: of `Exportable`.

    Raises:
        ValueError: the network can't be exported, or not with free height and width.
        ImportError: packages for ONNX are missing.
        RuntimeError: the file computes something else.
    """
    out = Path(out)
    check_target(out)
    part = Exportable(switch_to_deploy(model), **options).eval().requires_grad_(False)
    traced, checked = (TRACED, CHECKED) if size is None else ((2, *size), ((2, *size), (1, *size)))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        part.channels = _channels_taken(part, checked[0])
        for shape in checked[:2]:  # before the minutes that an export takes
            _accepts(part, shape, fixed=size is not None)
        program, names = _trace(part, random_images(part.channels, traced), free_size=size is None)
        save = _save_onnx if out.suffix == '.onnx' else _save_program

        def write(unfinished: Path) -> None:
            show(save(unfinished, program, names, part.metadata()))
            run = (OnnxFile if out.suffix == '.onnx' else ProgramFile)(unfinished)
            for shape in checked:
                show(f'{" x ".join(map(str, shape))}: differs from PyTorch by {_difference(part, run, shape):.0e}')

        write_whole(out, write)


def check_target(out: Path) -> None:
    """Check that a file can be written, and with the packages that are installed.

    Raises:
        ValueError, FileNotFoundError, ImportError: as one line.
    """
    choose('the suffix of the output', out.suffix, FORMATS)
    if not out.parent.is_dir():
        raise FileNotFoundError(f'the folder of the output {str(out)!r} does not exist')
    if not hasattr(torch.compiler, 'is_exporting'):
        raise ImportError(f'export needs PyTorch 2.6 or newer, and this is {torch.__version__}')
    if out.suffix == '.onnx':
        require_packages(PACKAGES)


def random_images(channels: int, shape: tuple[int, int, int]) -> Tensor:
    """Make random images of (batch, height, width)."""
    batch, *size = shape
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


def _channels_taken(part: Exportable, shape: tuple[int, int, int]) -> int:
    """Try how many channels a network takes: three, those of its first convolution, or those that it normalises.

    One that rearranges images before its first convolution, as YOLOX does, takes fewer than that. Where none will do,
    it is not the channels.
    """
    candidates = (3, part.channels, *([len(part.mean)] if part.normalises else []))
    for channels in dict.fromkeys(candidates):
        try:
            part(random_images(channels, shape))
        except Exception:  # whatever a network says; `_accepts` repeats it
            continue
        return channels
    return part.channels


def _accepts(part: Exportable, shape: tuple[int, int, int], fixed: bool) -> None:
    try:
        outputs = part(random_images(part.channels, shape))
    except Exception as error:  # whatever a network says about a size
        said = 'this network cannot be exported with free height and width (--size HEIGHTxWIDTH fixes them)'
        said = 'this network cannot be exported' if fixed else said
        raise ValueError(f'{said}: {one_line(error)}') from error
    if not all(isinstance(value, Tensor) for value in outputs.values()):
        raise ValueError(f'this {part.kind} cannot be exported: its outputs are not all tensors')


def _trace(part: Exportable, example: Tensor, free_size: bool) -> tuple[torch.export.ExportedProgram, list[str]]:
    """Export the graph, and return it with the names of its outputs."""
    free = torch.export.Dim.DYNAMIC
    axes = {0: free, 2: free, 3: free} if free_size else {0: free}
    names = list(part(example))
    try:  # strict: mmseg's resize computes sizes with int(), which a non-strict export fixes
        program = torch.export.export(part, (example,), dynamic_shapes=(axes,), strict=True)
    except Exception as error:  # any of the exporter's own
        raise ValueError(f'this network cannot be exported: {one_line(error)[:_REASON_LENGTH]}') from error
    return program, names


def _save_onnx(path: Path, program, names: list[str], metadata: dict[str, str]) -> str:
    try:
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=['images'], output_names=names, optimize=True
        )
    except Exception as error:  # any of the exporter's own
        raise ValueError(f'this network cannot be exported: {one_line(error)[:_REASON_LENGTH]}') from error
    _regroup_sums(exported.model.graph)
    _tidy(exported.model, metadata)
    exported.save(str(path))
    return f'{len(exported.model.graph)} nodes, {path.stat().st_size / 1e6:.1f} MB'


def _regroup_sums(graph) -> None:
    """Make (features + maps) + shortcut, convolutions the first two, features + (maps + shortcut): onnxruntime fuses
    one addition into a convolution, so that both cost nothing."""
    for outer in graph:
        for index, value in enumerate(outer.inputs if outer.op_type == 'Add' else ()):
            inner = value.producer()
            if inner is not None and inner.op_type == 'Add' and len(value.uses()) == 1:
                makers = [term.producer() for term in inner.inputs]
                if all(maker is not None and maker.op_type == 'Conv' for maker in makers):
                    features, shortcut = inner.inputs[0], outer.inputs[1 - index]
                    inner.replace_input_with(0, shortcut)
                    outer.replace_input_with(1 - index, features)
                    break
    graph.sort()


def _tidy(model, metadata: dict[str, str]) -> None:
    """Name the free axes, and replace the exporter's notes, which quote paths of this machine, by the metadata."""
    graph = model.graph
    free = dict(zip(map(str, graph.inputs[0].shape), AXES, strict=True))
    for value in (*graph.inputs, *graph.outputs):
        value.shape = type(value.shape)(
            side if isinstance(side, int) else free.get(str(side), str(side)) for side in value.shape
        )
    for part in (model, graph, *graph, *graph.inputs, *graph.initializers.values()):
        part.metadata_props.clear()
    for node in graph:
        for value in node.outputs:
            value.metadata_props.clear()
    model.metadata_props.update(metadata)


def _save_program(path: Path, program, names: list[str], metadata: dict[str, str]) -> str:
    with path.open('wb') as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return f'{path.stat().st_size / 1e6:.1f} MB'


def _difference(part: Exportable, run: Callable, shape: tuple[int, int, int]) -> float:
    """Compute the largest difference between a file's outputs and PyTorch's, relative to the largest value.

    Raises:
        RuntimeError: the file fails, or differs by more than TOLERANCE.
    """
    try:
        ours, theirs = part(random_images(part.channels, shape)), run(random_images(part.channels, shape))
    except Exception as error:  # any of the runtime's own
        raise RuntimeError(f'the exported network fails at {shape}: {one_line(error)[:_REASON_LENGTH]}') from error
    largest = 0.0
    for name, value in ours.items():
        difference = (theirs[name] - value).abs().max() / value.abs().max().clamp(min=torch.finfo(value.dtype).tiny)
        largest = max(largest, float(difference))
        if theirs[name].shape != value.shape or not difference <= TOLERANCE:
            raise RuntimeError(f'{name} of the exported network differs from PyTorch at {shape} by {difference:.0e}')
    return largest
