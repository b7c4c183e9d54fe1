"""One call of a network in one setting: a forward pass or a training step."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsb.analysis.networks import Features, Network
from mmsb.export import export
from mmsb.exported import OnnxFile
from mmsb.models.deploy import switch_to_deploy

PHASES = ('inference', 'training')
MODES = ('eager', 'compile', 'deploy', 'deploy+compile', 'onnxruntime')
INFERENCE_MODES = MODES[2:]
MEMORY_FORMATS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}
DTYPES = ('fp32', 'bf16')
_SGD = dict(lr=1e-4, momentum=0.9, weight_decay=1e-4)


@dataclass(frozen=True)
class Setting:
    """The conditions of a measurement.

    Attributes:
        phase: 'inference', or 'training': forward, loss, backward and a step of SGD with momentum.
        batch_size: images per call.
        size_px: height and width of the images.
        mode: 'eager', or 'compile': `torch.compile` of the backbone, as one graph. For inference also 'deploy': batch
            norms folded; 'deploy+compile': the same compiled, with the weights as constants; 'onnxruntime': exported,
            on the CPU.
        memory_format: memory format of the weights and images.
        dtype: 'fp32', or 'bf16': autocast with float32 weights, as with `tools/train.py --amp`.
    """

    phase: str
    batch_size: int
    size_px: tuple[int, int]
    mode: str = 'eager'
    memory_format: str = 'nchw'
    dtype: str = 'fp32'

    def __str__(self) -> str:
        size = ' x '.join(map(str, self.size_px))
        how = f'{self.mode}, {self.memory_format}, {self.dtype}'
        return f'{self.phase}, batch {self.batch_size}, {size}, {how}'

    def images(self, device: torch.device, seed: int) -> Tensor:
        """Make a batch of random images, (B, 3, H, W)."""
        images = torch.randn(self.batch_size, 3, *self.size_px, generator=torch.Generator().manual_seed(seed))
        return images.to(device, memory_format=MEMORY_FORMATS[self.memory_format])


class Step:
    """A call to measure. It frees its gradients at the end and keeps the momentum until `close`.

    Args:
        network: converted to the memory format and phase of the setting; it can have only one step at a time.
        setting: conditions of the call.
        images: from `Setting.images`; shared by all networks.
    """

    def __init__(self, network: Network, setting: Setting, images: Tensor):
        self.network = network
        self.images = images
        bf16 = setting.dtype == 'bf16'
        self.autocast = dict(device_type=images.device.type, dtype=torch.bfloat16, enabled=bf16)
        self.model = network.model
        self.file = None
        if setting.mode in INFERENCE_MODES:
            if setting.phase == 'training':
                raise ValueError(f'{setting.mode} is for inference')
            network.model = switch_to_deploy(copy.deepcopy(network.model).eval())
        self.backbone = network.model.backbone
        network.model.to(memory_format=MEMORY_FORMATS[setting.memory_format])
        network.model.train(setting.phase == 'training')
        self.optimizer = None
        if setting.phase == 'training':
            weights = [weight for weight in network.model.parameters() if weight.requires_grad]
            self.optimizer = torch.optim.SGD(weights, **_SGD)
        if setting.mode.endswith('compile'):
            # Beyond its limit of graphs per code object, dynamo would stop compiling or fail, and all networks share
            # the code of SBResNet.forward.
            torch._dynamo.config.cache_size_limit = torch._dynamo.config.accumulated_cache_size_limit = 1000
            options = {'freezing': True} if setting.mode in INFERENCE_MODES else None
            network.model.backbone = torch.compile(self.backbone, fullgraph=True, dynamic=False, options=options)
        if setting.mode == 'onnxruntime':
            self.file = exported(network.model, setting, images)

    def __call__(self) -> None:
        if self.file is not None:
            self.file(self.images)
            return
        if self.optimizer is None:
            with torch.no_grad(), torch.autocast(**self.autocast):
                self.network.forward(self.images)
            return
        try:
            with torch.autocast(**self.autocast):
                loss = self.network.loss(self.images)
            loss.backward()
            self.optimizer.step()
        finally:  # even if memory runs out half-way
            self.optimizer.zero_grad(set_to_none=True)

    def held_bytes(self) -> int:
        """Return the bytes in memory before a call: weights, buffers, momentum and images."""
        tensors = [self.images, *self.network.model.parameters(), *self.network.model.buffers()]
        if self.optimizer is not None:
            tensors += [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))

    def close(self) -> None:
        """Free the momentum and restore the network."""
        self.network.model.backbone = self.backbone
        self.network.model = self.model
        self.optimizer = None


def exported(model: nn.Module, setting: Setting, images: Tensor) -> OnnxFile:
    """Export a network and load it in onnxruntime.

    Raises:
        ValueError: the setting is not onnxruntime's, or the network can't be exported.
    """
    if images.is_cuda or (setting.memory_format, setting.dtype) != ('nchw', 'fp32'):
        raise ValueError('onnxruntime is measured on the CPU in nchw and fp32')
    features = isinstance(model, Features)
    if features:  # backbone and neck in the place of a backbone
        whole, model = model, nn.Module()
        model.backbone = whole
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'network.onnx')
        export(model, path, backbone=features)
        return OnnxFile(path)
