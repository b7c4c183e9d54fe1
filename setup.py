"""Packaging: static metadata, plus the configs and tools that the wheel contains in `mmsb/.mim`, as OpenMMLab's do.

The mm* packages are in the extra `mminstall` and are not hard requirements, because pip would install OneDL's over the
stock ones.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
RESOURCES = ('configs', 'tools', 'model-index.yml')


def requirements(name: str) -> list[str]:
    """Read the requirements in requirements/<name>.txt, without comments, and of the files that it names by `-r`."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    lines = [line for line in (line.partition('#')[0].strip() for line in lines) if line]
    others = [line.removeprefix('-r ').removesuffix('.txt') for line in lines if line.startswith('-r ')]
    own = [line for line in lines if not line.startswith('-r ')]
    return own + [line for other in others for line in requirements(other)]


class BuildWithResources(build_py):
    """Copy configs, tools and the model index into mmsb/.mim, except in an editable installation, which has its own."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'mmsb', '.mim')
        shutil.rmtree(target, ignore_errors=True)  # an earlier build may have left files there
        for name in RESOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__', '*.py[co]', '.*'))
            else:
                shutil.copy2(source, target / name)


class WheelForMim(bdist_wheel):
    """Copy .mim into the wheel's dist-info folder as well.

    onedl-mim (0.5.1) takes the folder in the first row of the installed RECORD to be the package. pip sorts the rows,
    so that `mmsb-<version>.dist-info/` comes before `mmsb/`.
    """

    def run(self) -> None:
        super().run()
        # In an editable installation, mim searches the whole root for a config and rejects a name that it finds twice.
        shutil.rmtree(Path(self.get_finalized_command('build_py').build_lib, 'mmsb', '.mim'))

    def write_wheelfile(self, wheelfile_base: str, *args, **kwargs) -> None:
        super().write_wheelfile(wheelfile_base, *args, **kwargs)
        resources = Path(self.bdist_dir, 'mmsb', '.mim')
        if resources.is_dir():  # not in an editable wheel
            shutil.copytree(resources, Path(wheelfile_base, '.mim'), dirs_exist_ok=True)


readme = ROOT / 'README.md'
setup(
    # The same as the module's: mim and mmengine look up packages by distribution name (`mim train mmsb ...`).
    name='mmsb',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'mmsb' / 'version.py').read_text())[1],
    description='Spatial bias, attention-free global context for convolutional networks, on the OpenMMLab family',
    long_description=readme.read_text(encoding='utf-8') if readme.is_file() else '',
    long_description_content_type='text/markdown',
    author='The mmsb authors',
    license_expression='Apache-2.0',
    keywords='computer vision, image classification, object detection, semantic segmentation, global context',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: MacOS',
        'Operating System :: POSIX :: Linux',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 15)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmsb', 'mmsb.*']),
    package_data={'': ['*.csv', '*.html'], 'mmsb': ['py.typed']},
    install_requires=requirements('runtime'),
    extras_require={
        'mminstall': requirements('mminstall'),
        'export': requirements('export'),
        'dev': requirements('dev'),
        'all': requirements('mminstall') + requirements('dev'),
    },
    cmdclass={'build_py': BuildWithResources, 'bdist_wheel': WheelForMim},
    zip_safe=False,
)
