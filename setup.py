"""Packaging: static metadata, and the configs and tools that a wheel carries in `mmsb/.mim`, as OpenMMLab's do.

The mm* packages are the extra `mminstall` and not hard requirements: pip would lay OneDL's over the stock ones.
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
    """Read requirements/<name>.txt without its comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in (line.partition('#')[0].strip() for line in lines) if line]


class BuildWithResources(build_py):
    """Copy configs, tools and the model index into mmsb/.mim, but leave an editable installation to the root's own."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'mmsb', '.mim')
        shutil.rmtree(target, ignore_errors=True)  # build/ keeps what an earlier build left there
        for name in RESOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__', '*.py[co]', '.*'))
            else:
                shutil.copy2(source, target / name)


class WheelForMim(bdist_wheel):
    """Repeat .mim in the wheel's dist-info folder.

    onedl-mim (0.5.1) takes the folder of the first row of the installed RECORD for the package's. pip sorts the rows,
    and `mmsb-<version>.dist-info/` comes before `mmsb/`.
    """

    def run(self) -> None:
        super().run()
        # In an editable installation mim looks for a config below the root and refuses a name that is there twice.
        shutil.rmtree(Path(self.get_finalized_command('build_py').build_lib, 'mmsb', '.mim'))

    def write_wheelfile(self, wheelfile_base: str, *args, **kwargs) -> None:
        super().write_wheelfile(wheelfile_base, *args, **kwargs)
        resources = Path(self.bdist_dir, 'mmsb', '.mim')
        if resources.is_dir():  # not in an editable wheel
            shutil.copytree(resources, Path(wheelfile_base, '.mim'), dirs_exist_ok=True)


readme = ROOT / 'README.md'
setup(
    # The same as the module: mim and mmengine look a package up by its distribution's name (`mim train mmsb ...`).
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
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmsb', 'mmsb.*']),
    package_data={'': ['*.csv']},
    install_requires=requirements('runtime'),
    extras_require={
        'mminstall': requirements('mminstall'),
        'dev': requirements('dev'),
        'all': requirements('mminstall') + requirements('dev'),
    },
    cmdclass={'build_py': BuildWithResources, 'bdist_wheel': WheelForMim},
    zip_safe=False,
)
