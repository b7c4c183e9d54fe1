"""The training step of a classifier: eager, or captured as one CUDA graph and replayed.

It does what MMPretrain's step does (data preprocessor, network, loss, the optimizer that MMEngine builds) and nothing
else. A step of the paper's ResNet-38 is 24 GFLOP (62 M multiply-adds x 3 passes x 64 images), well under a millisecond
of arithmetic, in 325 operators, or 412 with the casts of bf16; SB-ResNet-38 has 509, or 644. Kernel launches and memory
traffic, most of it within the cache, limit its speed: hence the graph, and several networks side by side on streams.

Shapes: B batch, n test images.
"""

import gc
from contextlib import AbstractContextManager

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from mmsb.options import choose

MODES = ('eager', 'graph', 'compile')
PRECISIONS = ('fp32', 'bf16')
WARMUP_STEPS = 3
COMPILED_VERSIONS = 64  # each network has two: for a whole batch and for the last one of an epoch
TEST_BATCH = 500
TOPK = (1, 5)


class Trainer:
    """One network in training.

    Batch norms train, weight decay is that of the config's optimizer, the loss is computed in fp32. With bf16 the
    network runs under autocast: weights, momentum, statistics and tests stay in fp32. On a GPU all calls are made
    within `on_stream()`.

    Args:
        model: ImageClassifier with initial weights, on the device.
        cfg: its config, which `read_recipe` has accepted.
        mode: 'eager'; 'graph': the whole step is one CUDA graph for each batch size; 'compile': the same with kernels
            from torch.compile. A CPU has only 'eager'.
        precision: 'fp32' or 'bf16'.
        channels_last: memory format of weights and activations.

    Raises:
        ValueError: for an unknown mode or precision, a mode that the device does not have, and a network that draws
            random numbers in each step: a resumed training would not repeat them.
    """

    def __init__(
        self, model: nn.Module, cfg: Config, *, mode: str = 'eager', precision: str = 'fp32', channels_last: bool = True
    ):
        self.device = next(model.parameters()).device
        choose(f'mode on {self.device.type}', mode, MODES if self.device.type == 'cuda' else MODES[:1])
        self.bf16 = choose('precision', precision, PRECISIONS) == 'bf16'
        for name, module in model.named_modules():
            if getattr(module, 'drop_prob', 0) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p):
                raise ValueError(f'{name} draws random numbers in each step: a resumed training would not repeat them')
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format).train()
        self.optimizer = self._build_optimizer(cfg)
        self.loss_sum = torch.zeros((), device=self.device)  # over the images since `start_epoch`
        self._eager = mode == 'eager'
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}  # by batch size
        self._loss = self.loss
        if mode == 'compile':  # whole: a graph break, or one version too many, is an error and not silently eager
            torch._dynamo.config.cache_size_limit = COMPILED_VERSIONS
            self._loss = torch.compile(self.loss, dynamic=False, fullgraph=True)
        self.stream = None
        if self.device.type == 'cuda':
            self.stream = torch.cuda.Stream(self.device)
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # everything so far was queued there

    def _build_optimizer(self, cfg: Config) -> torch.optim.Optimizer:
        on_gpu = self.device.type == 'cuda'
        wrapper = cfg.optim_wrapper.to_dict()
        if on_gpu:
            wrapper['optimizer']['fused'] = True  # one kernel, and the only one that reads the lr from a tensor
        optimizer = build_optim_wrapper(self.model, wrapper).optimizer
        for group in optimizer.param_groups:
            if on_gpu:
                group['lr'] = torch.tensor(float(group['lr']), device=self.device)  # a graph sees its changes
            for parameter in group['params']:  # a graph needs the buffers in place; zeros start SGD as usual
                optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)
        return optimizer

    def on_stream(self) -> AbstractContextManager:
        """Queue work on the stream of this network; does nothing on a CPU."""
        return torch.cuda.stream(self.stream)

    def start_epoch(self, lr: float) -> None:
        """Set the learning rate and start a new sum of the loss."""
        self.loss_sum.zero_()
        for group in self.optimizer.param_groups:
            if isinstance(group['lr'], Tensor):
                group['lr'].fill_(lr)
            else:
                group['lr'] = lr

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on images (B, 3, H, W) uint8 and labels (B,), on the device; adds the loss to `loss_sum`."""
        if self._eager:
            self._step(images, labels)
            return
        if len(images) not in self._captured:
            self._captured[len(images)] = self._capture(images, labels)
        graph, static_images, static_labels = self._captured[len(images)]
        static_images.copy_(images)
        static_labels.copy_(labels)
        graph.replay()

    def _step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(images, labels)
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.detach() * len(images)

    def _capture(self, images: Tensor, labels: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """Capture the step for one batch size; weights, statistics, momentum and loss are left as they were."""
        assert torch.cuda.current_stream(self.device) == self.stream, 'call within on_stream()'
        static = images.clone(), labels.clone()
        state = [*self.model.parameters(), *self.model.buffers(), *self.momentum().values(), self.loss_sum]
        saved = [tensor.detach().clone() for tensor in state]
        for _ in range(WARMUP_STEPS):  # libraries choose their algorithms and allocate workspaces on this stream
            self._step(*static)
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()  # a finished network is part of a cycle: freeing its graphs during this capture would break it
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._step(*static)
        with torch.no_grad():
            for tensor, value in zip(state, saved, strict=True):
                tensor.copy_(value)
        return graph, *static

    def _scores(self, images: Tensor) -> Tensor:
        preprocessor = self.model.data_preprocessor
        x = (images.float() - preprocessor.mean) / preprocessor.std
        return self.model.head(self.model.extract_feat(x.contiguous(memory_format=self.memory_format)))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss of images (B, 3, H, W) uint8 and labels (B,)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            scores = self._scores(images)
        return self.model.head.loss_module(scores.float(), labels, avg_factor=len(images))

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> dict[int, float]:
        """Test on images (n, 3, H, W) uint8 and labels (n,) in fp32; returns the top-1 and top-5 error in %."""
        self.model.eval()
        correct = torch.zeros(len(TOPK), dtype=torch.long, device=self.device)
        for some, right in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
            hits = self._scores(some).topk(max(TOPK)).indices == right[:, None]
            correct += torch.stack([hits[:, :k].sum() for k in TOPK])
        self.model.train()
        return {k: 100 * (1 - count / len(images)) for k, count in zip(TOPK, correct.tolist(), strict=True)}

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum of each parameter by its name."""
        return {name: self.optimizer.state[value]['momentum_buffer'] for name, value in self.model.named_parameters()}

    def load(self, weights: dict[str, Tensor], momentum: dict[str, Tensor]) -> None:
        """Load weights, statistics and momentum."""
        self.model.load_state_dict(weights)
        for name, tensor in self.momentum().items():
            tensor.copy_(momentum[name])
