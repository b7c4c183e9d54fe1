"""Adds sb_resnet18 ... sb_resnet152 to timm's registry when timm is imported; `import mmsb` does not import it."""

from .imports import after_import

DEPTHS = (18, 34, 50, 101, 152)

#: What `timm.models.register_model` reads beside the entries: how images are prepared, as for timm's own ResNets.
default_cfgs = {
    f'sb_resnet{depth}': dict(first_conv='conv1', classifier='fc', pool_size=(7, 7), interpolation='bilinear')
    for depth in DEPTHS
}


def register(models) -> None:
    """Add an entry for each depth to the registry of the module `timm.models`."""
    for depth in DEPTHS:
        models.register_model(_entry(depth))


def _entry(depth: int):
    def entry(pretrained: bool = False, **options):
        from mmsb.models.timm_network import timm_network

        return timm_network(depth, pretrained, **options)

    entry.__name__ = f'sb_resnet{depth}'
    return entry


def install() -> None:
    """Register the networks once: now if timm has been imported, else when it is."""
    after_import({'timm.models': register})
