"""Moved: python -m benchmarks.timm_networks"""

import sys

sys.exit('error: this command is now python -m benchmarks.timm_networks, in the root of the repository')
