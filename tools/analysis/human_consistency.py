"""Moved: python -m benchmarks.human_consistency"""

import sys

sys.exit('error: this command is now python -m benchmarks.human_consistency, in the root of the repository')
