"""Acts on modules of other packages once they are imported, without importing them: that may take seconds."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


@dataclass
class AfterImport(MetaPathFinder):
    """Finds modules as Python does, and calls an action with each one after loading it.

    Attributes:
        actions: by the full name of the module.
    """

    actions: Mapping[str, Callable[[ModuleType], None]]

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self.actions else None
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_act(module: ModuleType) -> None:
                load(module)
                self.actions[name](module)

            spec.loader.exec_module = load_and_act
        return spec


def after_import(actions: Mapping[str, Callable[[ModuleType], None]]) -> None:
    """Call an action with each of some modules, by full name: now if it has been imported, else when it is.

    Calling this again with the same actions does nothing.
    """
    finder = AfterImport(actions)
    if finder in sys.meta_path:
        return
    sys.meta_path.insert(0, finder)
    for name in actions.keys() & sys.modules.keys():
        actions[name](sys.modules[name])
