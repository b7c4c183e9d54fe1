"""Adds sb_resnet18 ... sb_resnet152 to timm's registry when timm is imported; `import mmsb` does not import it."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

DEPTHS = (18, 34, 50, 101, 152)


class RegisterNetworks(MetaPathFinder):
    """Finds `timm.models`, and adds the networks after loading it."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != 'timm.models':
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_register(module) -> None:
                load(module)
                register(module)

            spec.loader.exec_module = load_and_register
        return spec


def register(models) -> None:
    """Add an entry for each depth to the registry of the module `timm.models`."""
    for depth in DEPTHS:

        def entry(pretrained: bool = False, *, depth: int = depth, **options):
            from mmsb.models.classifier import timm_network

            return timm_network(depth, pretrained, **options)

        entry.__name__ = f'sb_resnet{depth}'
        models.register_model(entry)


def install() -> None:
    """Register the networks once: now if timm is there, else when it is imported."""
    if any(isinstance(finder, RegisterNetworks) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, RegisterNetworks())
    if 'timm.models' in sys.modules:
        register(sys.modules['timm.models'])
