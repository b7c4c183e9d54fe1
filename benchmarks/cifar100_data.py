"""Make data/cifar100/{train,test}.npz of CIFAR-100, for benchmarks/cifar100.py and `mmsb.CIFAR100Arrays`.

python benchmarks/cifar100_data.py SOURCE [OUT]

SOURCE has the official `cifar-100-python` (its MD5 is checked), or tars of lossless mosaics, one a class, and
`classes.txt`. Both give the same images; their order within a class may differ.
"""

import argparse

from mmsb.datasets import cifar
from mmsb.engine.launcher import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description='Make train.npz and test.npz of CIFAR-100.')
    parser.add_argument('source', help='folder of cifar-100-python, or of the mosaics')
    parser.add_argument('out', nargs='?', default='data/cifar100', help='folder to write (default: data/cifar100)')
    args = parser.parse_args()
    for split in cifar.PER_CLASS:
        images, labels = cifar.read_source(args.source, split)
        cifar.check(images, labels, split)
        cifar.write(images, labels, f'{args.out}/{split}.npz')
        mean = ' / '.join(f'{value:.3f}' for value in images.mean((0, 1, 2)))
        print(f'{args.out}/{split}.npz: {len(images):,} images, {cifar.PER_CLASS[split]} a class, mean {mean}')


if __name__ == '__main__':
    run_tool(main)
