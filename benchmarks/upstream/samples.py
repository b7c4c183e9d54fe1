"""Generated images and what is to be learnt of them, in the libraries' own structures.

Images are noise; each has three objects, ellipses in their boxes, as instances, masks and classes of pixels. Labels are
below the smallest number of classes that the config has, so that they suit every head of a network.
"""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from benchmarks.upstream.networks import dicts_in

Size = tuple[int, int]  # height, width
# left, top, right, bottom as shares of the image
BOXES = np.array([[0.05, 0.1, 0.5, 0.6], [0.3, 0.2, 0.95, 0.9], [0.55, 0.5, 0.8, 0.75]])
IMAGES = 2
PERSON = (256, 128)  # re-identification pools maps of this size only
ROAD = (320, 800)  # of CLRNet, which has lanes at these positions


def image(size: Size, seed: int) -> Tensor:
    """Make an image of noise, uint8 of (3, H, W)."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, *size), np.uint8))


def _metainfo(size: Size, index: int) -> dict:
    return dict(
        img_id=index,
        img_path=f'{index}.png',
        img_shape=size,
        ori_shape=size,
        scale_factor=(1.0, 1.0),
        flip=False,
        flip_direction=None,
        border=np.array([0, size[0], 0, size[1]]),  # of CenterNet: where the image is in its padding
        homography_matrix=np.eye(3, dtype=np.float32),  # of teachers: what augmentation did to the image
    )


def _ellipses(size: Size) -> tuple[Tensor, np.ndarray]:
    """Place the objects: boxes (3, 4) in pixels, masks (3, H, W)."""
    boxes = BOXES * [size[1], size[0], size[1], size[0]]
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    radii = (boxes[:, 2:] - boxes[:, :2]) / 2
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2
    masks = [
        ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1 for (cx, cy), (rx, ry) in zip(centres, radii, strict=True)
    ]
    return torch.tensor(boxes, dtype=torch.float32), np.array(masks, np.uint8)


def _classes(masks: np.ndarray, labels: Tensor, background: int) -> Tensor:
    """Give each pixel the class of the object that covers it, (1, H, W)."""
    pixels = torch.full((1, *masks.shape[1:]), background)
    for mask, label in zip(torch.from_numpy(masks).bool(), labels, strict=True):
        pixels[0, mask] = label
    return pixels


def fewest_classes(cfg: Config) -> int:
    """Find the smallest number of classes in a config, things where there are things and stuff."""
    names = ('num_things_classes', 'num_classes')
    counts = [node[name] for node in dicts_in(cfg.model) for name in names if isinstance(node.get(name), int)]
    return min((count for count in counts if count > 0), default=1)


def detection_sample(cfg: Config, size: Size, index: int):
    """Make a DetDataSample with boxes, labels, masks, identities and classes of pixels."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    boxes, masks = _ellipses(size)
    labels = torch.arange(len(boxes)) % fewest_classes(cfg)
    sample = DetDataSample(metainfo=_metainfo(size, index))
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=labels, masks=BitmapMasks(masks, *size), instances_ids=torch.arange(len(boxes))
    )
    sample.ignored_instances = InstanceData(
        bboxes=boxes[:0], labels=labels[:0], masks=BitmapMasks(masks[:0], *size), instances_ids=labels[:0]
    )
    things = [node['num_things_classes'] for node in dicts_in(cfg.model) if 'num_things_classes' in node]
    pixels = _classes(masks, labels, background=max(things, default=0))  # the first class of stuff
    stride = _stride_of_classes(cfg)
    sample.gt_sem_seg = PixelData(sem_seg=pixels[:, ::stride, ::stride].to(torch.uint8))
    if 'roi_head' in cfg.model and not cfg.model.get('rpn_head'):  # Fast R-CNN; others take them for those of the RPN
        shifted = (boxes[:, None] + torch.linspace(-8, 8, 9)[:, None]).flatten(0, 1).clamp(0, min(size))
        sample.proposals = InstanceData(bboxes=shifted, scores=torch.ones(len(shifted)))
    return sample


def _stride_of_classes(cfg: Config) -> int:
    """Find by how much a pipeline scales the classes of pixels down: 8 in HTC."""
    scales = [node['scale_factor'] for node in dicts_in(cfg.to_dict()) if node.get('type') == 'SegRescale']
    return round(1 / scales[0]) if scales else 1


def video(cfg: Config, size: Size, frames: int, index: int):
    """Make a TrackDataSample and its frames, (T, 3, H, W); the first one is the key frame."""
    from mmdet.structures import TrackDataSample

    samples = [detection_sample(cfg, size, index) for _ in range(frames)]
    for frame, sample in enumerate(samples):
        sample.set_metainfo(dict(frame_id=frame, is_video_data=True, ori_video_length=frames, video_id=index))
    track = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=list(range(1, frames))))
    track.video_data_samples = samples
    return torch.stack([image(size, frames * index + frame) for frame in range(frames)]), track


def lanes_sample(size: Size):
    """Make a sample of two lanes for CLRNet, by its own transform."""
    from mmdet.registry import TRANSFORMS
    from mmengine.structures import BaseDataElement

    height, width = size
    lanes = [
        [(x * width, y * height) for x, y in ((start, 0.95), (0.5, 0.7), (end, 0.4))]
        for start, end in ((0.2, 0.6), (0.8, 0.4))
    ]
    to_array = TRANSFORMS.build(dict(type='LinesToArray', img_height=height, img_width=width))
    arrays = to_array.transform(dict(lines=lanes))
    classes = torch.zeros(1, *size, dtype=torch.long)
    classes[0, :, width // 2] = 1
    return BaseDataElement(
        lines_array=arrays['lines_array'],
        line_endpoints=arrays['line_endpoints'],
        lines=lanes,
        org_lines=lanes,
        org_height=height,
        org_width=width,
        gt_sem_seg=PixelData(sem_seg=classes),
    )


def segmentation_sample(cfg: Config, size: Size, index: int):
    """Make a SegDataSample; the background is the last class."""
    from mmseg.structures import SegDataSample

    _, masks = _ellipses(size)
    classes = fewest_classes(cfg)
    pixels = _classes(masks, torch.arange(len(masks)) % classes, background=classes - 1)
    sample = SegDataSample(metainfo=_metainfo(size, index))
    sample.gt_sem_seg = PixelData(data=pixels)
    return sample


def classification_sample(cfg: Config, size: Size, index: int, several: bool):
    """Make a DataSample with one label, or two where an image may have several."""
    from mmpretrain.structures import DataSample

    classes = fewest_classes(cfg)
    sample = DataSample(metainfo=dict(img_shape=size, ori_shape=size, sample_idx=index))
    return sample.set_gt_label([index, classes - 1] if several else index % classes)


def reid_sample(index: int):
    """Make a ReIDDataSample of one person, the same for two images in a row."""
    from mmdet.structures import ReIDDataSample

    sample = ReIDDataSample(metainfo=dict(img_shape=PERSON))
    return sample.set_gt_label(index // 2)
