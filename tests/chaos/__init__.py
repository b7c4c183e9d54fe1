import mmsb  # noqa: F401  (before mmdet, so that its operations are there)
