"""Deformable convolution (arXiv:1703.06211, arXiv:1811.11168) and attention (arXiv:2010.04159).

The convolutions call torchvision's kernels, the attention mmcv's own CPU function. A tap in row or column -1 is outside
the map for mmcv's kernels: its place has no gradient. Both of the former give it the derivative towards the map, which
is replaced here. Shapes: input (B, C, H, W), output (B, D, H', W'), weight
(D, C / groups, kH, kW), offset (B, 2 * G * kH * kW, H', W') as (dy, dx) in pixels, mask (B, G * kH * kW, H', W'), where
G is the number of deformable groups.
"""

import torch
from torch import Tensor

from .precision import in_float32


@in_float32('output')
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,  # noqa: N803  mmcv's names, here and below
    kH: int,  # noqa: N803
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the convolution into `output`."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_convolve(output.shape[-2:], geometry, input, weight, offset))


@in_float32('gradInput', 'gradOffset')
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,  # noqa: N803
    gradInput: Tensor,  # noqa: N803
    gradOffset: Tensor,  # noqa: N803
    weight: Tensor,
    columns: Tensor,
    kW: int,  # noqa: N803
    kH: int,  # noqa: N803
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of input and offset; keep that of the weight, a by-product, in mmcv's buffer `columns`."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _gradients(gradOutput, geometry, input, weight, offset)
    gradInput.copy_(grads[0])
    _write(gradOffset, grads[2])
    if columns.dtype == weight.dtype:
        columns.resize_(weight.shape).copy_(grads[1])


@in_float32('gradWeight')
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,  # noqa: N803
    gradWeight: Tensor,  # noqa: N803
    columns: Tensor,
    ones: Tensor,
    kW: int,  # noqa: N803
    kH: int,  # noqa: N803
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add `scale` times the gradient of the weight to `gradWeight`."""
    if columns.shape == gradWeight.shape:
        gradWeight.add_(columns, alpha=scale)
        columns.resize_(0)
        return
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _gradients(gradOutput, geometry, input, torch.zeros_like(gradWeight), offset)
    gradWeight.add_(grads[1], alpha=scale)


@in_float32('output')
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the convolution into `output`."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    output.copy_(_convolve(output.shape[-2:], geometry, input, weight, offset, mask, bias if with_bias else None))


@in_float32('grad_input', 'grad_weight', 'grad_bias', 'grad_offset', 'grad_mask')
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradients of input, weight, bias, offset and mask."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    grads = _gradients(grad_output, geometry, input, weight, offset, mask, bias if with_bias else None)
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    _write(grad_offset, grads[2])
    _write(grad_mask, grads[3])
    if with_bias:
        grad_bias.copy_(grads[4])


def _operands(size: torch.Size, input: Tensor, weight: Tensor, offset: Tensor, mask, bias) -> tuple[Tensor, ...]:
    """Complete the operands of torchvision's kernels, which expect zeros for a missing mask or bias."""
    return (
        input,
        weight,
        _first(offset, size),
        input.new_zeros(len(input), 1) if mask is None else _first(mask, size),
        input.new_zeros(len(weight)) if bias is None else bias,
    )


def _first(maps: Tensor, size: torch.Size) -> Tensor:
    """Read maps larger than the output, (B, K, h, w), as mmcv's kernels do: the first K * H' * W' values of each image.

    mmcv's kernels do not check the sizes, and DyHead passes them the offsets of another level.
    """
    if maps.shape[-2:] == size or maps[0, 0].numel() < size.numel():
        return maps
    return maps.flatten(1)[:, : maps.shape[1] * size.numel()].reshape(*maps.shape[:2], *size)


def _write(target: Tensor, grad: Tensor) -> None:
    """Write a gradient; a larger target (see `_first`) gets it in the first values of each image, and zeros after."""
    target.zero_().flatten(1)[:, : grad[0].numel()] = grad.flatten(1)


def _convolve(size: torch.Size, geometry: tuple[int, ...], input, weight, offset, mask=None, bias=None) -> Tensor:
    operands = _operands(size, input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*operands, *geometry, mask is not None)


def _gradients(
    grad_output: Tensor, geometry: tuple[int, ...], input, weight, offset, mask=None, bias=None
) -> tuple[Tensor, ...]:
    """Compute the gradients of input, weight, offset, mask and bias."""
    operands = _operands(grad_output.shape[-2:], input, weight, offset, mask, bias)
    grads = torch.ops.torchvision._deform_conv2d_backward(grad_output, *operands, *geometry, mask is not None)
    grads[2].masked_fill_(_at_minus_one(operands[2], weight.shape[-2:], geometry), 0)
    return grads


def _at_minus_one(offset: Tensor, kernel_size: torch.Size, geometry: tuple[int, ...]) -> Tensor:
    """Find the offsets, (B, 2 * G * kH * kW, H', W'), that place their tap in row or column -1.

    In a padded convolution these are all taps of the first row and column while the offsets are zero.
    """
    axes = []
    for i, (taps, length) in enumerate(zip(kernel_size, offset.shape[-2:], strict=True)):
        stride, padding, dilation = geometry[i], geometry[2 + i], geometry[4 + i]
        steps = torch.arange(taps, device=offset.device)[:, None] * dilation - padding
        axes.append(steps + torch.arange(length, device=offset.device) * stride)  # (taps, length)
    rows, columns = torch.broadcast_tensors(axes[0][:, None, :, None], axes[1][None, :, None, :])
    grid = torch.stack([rows, columns], 2).flatten(0, 2)  # (2 * kH * kW, H', W')
    # added in the kernels' precision, in which an offset of 1e-9 also gives -1
    return (offset.unflatten(1, (-1, len(grid))) + grid.to(offset.dtype) == -1).flatten(1, 2)


def _attend(value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    # Imported late, since mmcv.ops itself loads this module.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    if isinstance(spatial_shapes, Tensor):  # mmcv would read each number of a tensor, several times
        spatial_shapes = spatial_shapes.tolist()
    return multi_scale_deformable_attn_pytorch(value, spatial_shapes, sampling_locations, attention_weights)


@in_float32()
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sample and weight values at several levels, with mmcv's own CPU function.

    Args:
        value: (B, keys, heads, channels per head).
        value_spatial_shapes: (levels, 2), height and width of each level.
        sampling_locations: (B, queries, heads, levels, points, 2), x and y from 0 to 1.
        attention_weights: (B, queries, heads, levels, points).

    Returns:
        (B, queries, heads * channels per head).
    """
    return _attend(value, value_spatial_shapes, sampling_locations, attention_weights)


@in_float32('grad_value', 'grad_sampling_loc', 'grad_attn_weight')
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of values, locations and weights, computed by autograd."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)]
        output = _attend(inputs[0], value_spatial_shapes, *inputs[1:])
    for target, grad in zip(
        (grad_value, grad_sampling_loc, grad_attn_weight), torch.autograd.grad(output, inputs, grad_output), strict=True
    ):
        target.copy_(grad)
    size = value_spatial_shapes.flip(1)[:, None].to(sampling_locations)  # (levels, 1, 2), width and height
    position = sampling_locations * size - 0.5
    outside = (position <= -1) | (position >= size)
    grad_sampling_loc.masked_fill_(outside.any(-1, keepdim=True), 0)
