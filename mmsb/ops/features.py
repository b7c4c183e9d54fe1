"""Operations on feature maps: CARAFE (arXiv:1905.02188), PSA masks (PSANet, ECCV 2018) and masked convolution."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import in_float32


class _Reassembly:
    """The taps of CARAFE: each output pixel is a weighted sum over the k x k pixels around its source pixel.

    Shapes: features (B, C, H, W), masks (B, groups * k * k, s * H, s * W), output (B, C, s * H, s * W).
    """

    def __init__(self, features: Tensor, kernel_size: int, group_size: int, scale_factor: int):
        self.batch, channels, self.height, self.width = features.shape
        self.k, self.groups, self.scale = kernel_size, group_size, scale_factor
        self.channels = channels // group_size

    def split(self, maps: Tensor) -> Tensor:
        """View maps of the output's size as (B, groups, channels or taps per group, H, s, W, s)."""
        return maps.reshape(self.batch, self.groups, -1, self.height, self.scale, self.width, self.scale)

    def pad(self, features: Tensor) -> Tensor:
        return F.pad(features, [self.k // 2] * 4).unflatten(1, (self.groups, self.channels))

    def taps(self, padded: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the index of each tap and a view of the features that it reads, (B, groups, channels, H, W)."""
        for tap in range(self.k * self.k):
            row, column = divmod(tap, self.k)
            yield tap, padded[..., row : row + self.height, column : column + self.width]


@in_float32('output')
def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Write the reassembled features into `output`."""
    reassembly = _Reassembly(features, kernel_size, group_size, scale_factor)
    weights, total = reassembly.split(masks), 0
    for tap, read in reassembly.taps(reassembly.pad(features)):
        total = total + read[:, :, :, :, None, :, None] * weights[:, :, tap : tap + 1]
    output.copy_(total.reshape(output.shape))


@in_float32('bottom_grad', 'mask_grad')
def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and masks."""
    reassembly = _Reassembly(features, kernel_size, group_size, scale_factor)
    weights, grad = reassembly.split(masks), reassembly.split(top_grad)
    padded = reassembly.pad(features)
    padded_grad, weight_grad = torch.zeros_like(padded), torch.zeros_like(weights)
    for (tap, read), (_, read_grad) in zip(reassembly.taps(padded), reassembly.taps(padded_grad), strict=True):
        read_grad += (grad * weights[:, :, tap : tap + 1]).sum((4, 6))
        weight_grad[:, :, tap] = (grad * read[:, :, :, :, None, :, None]).sum(2)
    edge = kernel_size // 2
    height, width = features.shape[-2:]
    bottom_grad.copy_(padded_grad.flatten(1, 2)[..., edge : edge + height, edge : edge + width])
    mask_grad.copy_(weight_grad.reshape(mask_grad.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the reassembled features into `output`; `rfeatures` is what mmcv keeps for the backward pass."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and masks."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def _psa_taps(h_feature: int, w_feature: int, h_mask: int, w_mask: int, device) -> tuple[Tensor, Tensor]:
    """Find the mask tap with which each position sees another, and whether there is one: (H * W others, H, W)."""
    rows, columns = torch.arange(h_feature, device=device), torch.arange(w_feature, device=device)
    row = (rows[:, None] - rows + (h_mask - 1) // 2)[:, None, :, None]  # (other's row, 1, row, 1)
    column = (columns[:, None] - columns + (w_mask - 1) // 2)[None, :, None, :]
    seen = (row >= 0) & (row < h_mask) & (column >= 0) & (column < w_mask)
    tap = row.clamp(0, h_mask - 1) * w_mask + column.clamp(0, w_mask - 1)
    return tap.flatten(0, 1), seen.flatten(0, 1)


def _swap_roles(maps: Tensor, psa_type: int) -> Tensor:
    """Convert (B, others, H, W) of 'collect' (0) to (B, positions, others' H, W) of 'distribute' (1), or back."""
    return maps if psa_type == 0 else maps.flatten(2).transpose(1, 2).reshape(maps.shape)


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Spread the mask of each position, (B, h_mask * w_mask, H, W), over the map: `output`, (B, H * W, H, W)."""
    tap, seen = _psa_taps(h_feature, w_feature, h_mask, w_mask, input.device)
    output.copy_(_swap_roles(input.gather(1, tap.expand(num_, -1, -1, -1)) * seen, psa_type))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of the masks into `grad_input`."""
    tap, seen = _psa_taps(h_feature, w_feature, h_mask, w_mask, grad_output.device)
    grad = _swap_roles(grad_output, psa_type) * seen
    grad_input.zero_().scatter_add_(1, tap.expand(num_, -1, -1, -1), grad)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the windows around M positions of one image, (1, C, H, W), into `col`, (C * kernel_h * kernel_w, M)."""
    padded = F.pad(im[0], [pad_w, pad_w, pad_h, pad_h])
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]  # (kernel_h, 1, M)
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]  # (kernel_w, M)
    col.copy_(padded[:, rows, columns].reshape(col.shape))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write M columns, (channels, M), to their positions in `im`, (1, channels, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col
