"""Adds sb_resnet18 ... sb_resnet152 to timm's registry when timm is imported; `import mmsb` does not import it."""

from .imports import after_import

DEPTHS = (18, 34, 50, 101, 152)


def register(models) -> None:
    """Add an entry for each depth to the registry of the module `timm.models`."""
    for depth in DEPTHS:

        def entry(pretrained: bool = False, *, depth: int = depth, **options):
            from mmsb.models.classifier import timm_network

            return timm_network(depth, pretrained, **options)

        entry.__name__ = f'sb_resnet{depth}'
        models.register_model(entry)


def install() -> None:
    """Register the networks once: now if timm has been imported, else when it is."""
    after_import({'timm.models': register})
