"""SBResNet in the place of the ResNet of upstream configs: one of every folder of mmdet, mmseg and mmpretrain.

    python -m benchmarks.upstream

Nothing is downloaded; see docs/upstream.md for what is run, and for the results.
"""
