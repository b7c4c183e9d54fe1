"""The training step of a classifier: eager, or captured as one CUDA graph and replayed.

It is MMPretrain's step (data preprocessor, network, loss, the optimiser that MMEngine builds) without what is around
it. A step of the paper's ResNet-38 is 24 GFLOP (62 M multiply-adds x 3 passes x 64 images), well under a millisecond
of arithmetic, in 325 operators, or 412 with the casts of bf16; SB-ResNet-38 has 509, or 644. So it is bound by launches
and by memory traffic, most of it within the cache: hence the graph, and several networks side by side on streams.

Shapes: B batch.
"""

import gc
from collections.abc import Callable

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from benchmarks.cifar100.recipe import Recipe
from mmsb.options import choose

MODES = ('eager', 'graph', 'compile')
PRECISIONS = ('fp32', 'bf16')
WARMUP_STEPS = 3
COMPILED_VERSIONS = 64  # each network in the plan has two: of a whole batch and of an epoch's last one


class Trainer:
    """One network in training.

    Batch norms train, every parameter decays as the config's optimiser says, the loss is computed in fp32. With bf16
    the network runs under autocast: weights, momentum, statistics and the evaluation stay in fp32. On a GPU its work
    belongs on its `stream`: callers enter it.

    Args:
        model: ImageClassifier with initial weights, on the device.
        cfg: its config, for the optimiser.
        recipe: of the same config.
        mode: 'eager'; 'graph': the whole step is one CUDA graph for each batch size; 'compile': the same of kernels
            that torch.compile makes. CPU: 'eager'.
        precision: 'fp32' or 'bf16'.
        channels_last: memory format of weights and activations.

    Raises:
        ValueError: for an unknown mode or precision, a mode that the device does not have, and a network or an
            optimiser with more in it than the step does.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: Config,
        recipe: Recipe,
        *,
        mode: str = 'eager',
        precision: str = 'fp32',
        channels_last: bool = True,
    ):
        self.device = next(model.parameters()).device
        choose(f'mode on {self.device.type}', mode, MODES if self.device.type == 'cuda' else MODES[:1])
        self.bf16 = choose('precision', precision, PRECISIONS) == 'bf16'
        _check_network(model)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format).train()
        self.recipe = recipe
        self.optimizer = self._build_optimizer(cfg)
        self.loss_sum = torch.zeros((), device=self.device)  # over the images of the epoch
        self._captured: dict[int, tuple] = {}
        self._eager = mode == 'eager'
        self._loss_of = _compiled(self._loss) if mode == 'compile' else self._loss
        self.stream = None
        if self.device.type == 'cuda':
            self.stream = torch.cuda.Stream(self.device)
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # all of the above was made there

    def _build_optimizer(self, cfg: Config) -> torch.optim.Optimizer:
        on_gpu = self.device.type == 'cuda'
        wrapper = cfg.optim_wrapper.to_dict()
        if on_gpu:
            wrapper['optimizer']['fused'] = True  # one kernel, and the only kind that reads lr from a tensor
        optimizer = build_optim_wrapper(self.model, wrapper).optimizer
        for group in optimizer.param_groups:
            if on_gpu:
                group['lr'] = torch.tensor(float(group['lr']), device=self.device)  # a graph sees its changes
            for parameter in group['params']:  # zeros are the same as none yet
                optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)
        return optimizer

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group['lr'], Tensor):
                group['lr'].fill_(lr)
            else:
                group['lr'] = lr

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on images (B, 3, H, W) uint8 and labels (B,), on the device; the loss is added to `loss_sum`."""
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
        loss = self._loss_of(images, labels)
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.detach() * len(images)

    def _capture(self, images: Tensor, labels: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """Capture the step for one batch size; weights, statistics and momentum are what they were before."""
        assert torch.cuda.current_stream(self.device) == self.stream, 'the caller enters the stream of the trainer'
        static = images.clone(), labels.clone()
        state = self._state()
        kept = [tensor.detach().clone() for tensor in state]
        for _ in range(WARMUP_STEPS):  # on the stream of the capture: libraries make their choices and workspaces
            self._step(*static)
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()  # a finished training holds itself, and to free its graphs within this capture would break it
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._step(*static)
        with torch.no_grad():
            for tensor, value in zip(state, kept, strict=True):
                tensor.copy_(value)
        return graph, *static

    def _state(self) -> list[Tensor]:
        buffers = [state['momentum_buffer'] for state in self.optimizer.state.values()]
        return [*self.model.parameters(), *self.model.buffers(), *buffers, self.loss_sum]

    def _scores(self, images: Tensor) -> Tensor:
        preprocessor = self.model.data_preprocessor
        x = (images.float() - preprocessor.mean) / preprocessor.std
        return self.model.head(self.model.extract_feat(x.contiguous(memory_format=self.memory_format)))

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            scores = self._scores(images)
        head = self.model.head
        return head.loss_module(scores.float(), labels, avg_factor=len(images))

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> dict[int, float]:
        """Test on images (n, 3, H, W) uint8 in fp32: the error in % for each k of the recipe."""
        self.model.eval()
        size, topk = self.recipe.test_batch_size, self.recipe.topk
        right = torch.zeros(len(topk), dtype=torch.long, device=self.device)
        for start in range(0, len(images), size):
            best = self._scores(images[start : start + size]).topk(max(topk)).indices
            hits = best == labels[start : start + size, None]
            right += torch.stack([hits[:, :k].sum() for k in topk])
        self.model.train()
        return {k: 100 * (1 - n / len(images)) for k, n in zip(topk, right.tolist(), strict=True)}

    def momentum(self) -> dict[str, Tensor]:
        """Give the momentum of every parameter by its name."""
        return {name: self.optimizer.state[value]['momentum_buffer'] for name, value in self.model.named_parameters()}

    def load(self, weights: dict[str, Tensor], momentum: dict[str, Tensor]) -> None:
        """Take over weights, statistics and momentum, in place: captured graphs stay valid."""
        self.model.load_state_dict(weights)
        for name, tensor in self.momentum().items():
            tensor.copy_(momentum[name])


def _compiled(function: Callable) -> Callable:
    """Compile whole: what would break the graph, or is compiled once too often, is an error and not silently eager."""
    torch._dynamo.config.cache_size_limit = COMPILED_VERSIONS
    return torch.compile(function, dynamic=False, fullgraph=True)


def _check_network(model: nn.Module) -> None:
    """Refuse a network whose step would not be the one above."""
    preprocessor = model.data_preprocessor
    if getattr(preprocessor, 'mean', None) is None:
        raise ValueError('data_preprocessor must normalise: it has no mean')
    if preprocessor.to_rgb or preprocessor.pad_size_divisor > 1 or preprocessor.batch_augments:
        raise ValueError('data_preprocessor must do nothing but normalise: no to_rgb, padding or batch_augments')
    if model.head.cal_acc:
        raise ValueError('head.cal_acc=True: the fast path does not measure the training accuracy')
    for name, module in model.named_modules():
        drops = getattr(module, 'p', 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
        if drops or (isinstance(module, DropPath) and module.drop_prob):
            raise ValueError(f'{name} draws random numbers in each step: a resumed run would not draw the same')
