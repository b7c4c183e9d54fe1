"""The fault campaign, and what forges hostile files."""

import mmsb  # noqa: F401  (first: it supplies mmcv's operations)
