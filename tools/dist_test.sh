#!/usr/bin/env bash
# Test on several GPUs or, without a GPU, with several CPU processes through gloo.
#
#   tools/dist_test.sh CONFIG CHECKPOINT NUM_GPUS [arguments of tools/test.py]
#
# For several nodes, run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment.
set -euo pipefail
exec "$(dirname "$0")/launch.sh" test.py 2 "$@"
