#!/usr/bin/env bash
# Train on several GPUs or, without a GPU, with several CPU processes through gloo.
#
#   tools/dist_train.sh CONFIG NUM_GPUS [arguments of tools/train.py]
#
# For several nodes, run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment.
set -euo pipefail
exec "$(dirname "$0")/launch.sh" train.py 1 "$@"
