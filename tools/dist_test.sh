#!/usr/bin/env bash
# Test on several GPUs (or, on a machine without one, on several CPU processes through gloo).
#
#   tools/dist_test.sh CONFIG CHECKPOINT NUM_GPUS [arguments of tools/test.py]
#
# Several nodes: run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment.
set -euo pipefail
exec "$(dirname "$0")/launch.sh" test.py 2 "$@"
