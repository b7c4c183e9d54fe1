"""Focal losses (Lin et al., arXiv:1708.02002, equation 5).

Differs from mmcv's CUDA kernels: `log(1 - p)` is computed from the logit. The kernels subtract in float32 and clip,
which gives a loss of 87 for every background logit between 17 and 87.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import in_float32


def _weight_of(target: Tensor, weight: Tensor) -> Tensor | float:
    return weight[target] if weight.numel() else 1.0


@in_float32('output')
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each logit, (n, classes), into `output`; a target of `classes` is background.

    Args:
        target: (n), class indices.
        weight: (classes), of the target class; empty for none.
    """
    log_p, log_q, is_target = F.logsigmoid(input), F.logsigmoid(-input), _one_hot(target, input)
    hit, miss = alpha * log_q.exp() ** gamma * log_p, (1 - alpha) * log_p.exp() ** gamma * log_q
    output.copy_(-torch.where(is_target, hit, miss)).mul_(_per_row(_weight_of(target, weight)))


@in_float32('grad_input')
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each loss with respect to its logit into `grad_input`, (n, classes)."""
    log_p, log_q, is_target = F.logsigmoid(input), F.logsigmoid(-input), _one_hot(target, input)
    p, q = log_p.exp(), log_q.exp()
    hit = alpha * q**gamma * (q - gamma * p * log_p)
    miss = (1 - alpha) * p**gamma * (gamma * q * log_q - p)
    grad_input.copy_(-torch.where(is_target, hit, miss)).mul_(_per_row(_weight_of(target, weight)))


def _one_hot(target: Tensor, input: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def _per_row(weight: Tensor | float) -> Tensor | float:
    return weight[:, None] if isinstance(weight, Tensor) else weight


@in_float32('output')
def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each row into `output`, (n); a negative target is ignored.

    Args:
        input: probabilities after the softmax, (n, classes).
        target: (n), class indices.
        weight: (classes), of the target class; empty for none.
    """
    p, valid = _probability_of(target, input)
    loss = -alpha * (1 - p) ** gamma * p.log() * _weight_of(target.clamp(min=0), weight)
    output.copy_(torch.where(valid, loss, 0))


@in_float32('buff', 'grad_input')
def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the gradients of the logits into `grad_input`, (n, classes), and the factor of each row into `buff`."""
    p, valid = _probability_of(target, input)
    factor = alpha * (gamma * (1 - p) ** (gamma - 1) * p * p.log() - (1 - p) ** gamma)
    buff.copy_(torch.where(valid, factor * _weight_of(target.clamp(min=0), weight), 0))
    grad_input.copy_(buff[:, None] * (_one_hot(target, input).to(input.dtype) - input))


def _probability_of(target: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of each row's target, at least the smallest normal float, and which targets are valid."""
    p = probabilities.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return p.clamp(min=torch.finfo(p.dtype).tiny), target >= 0
