#!/usr/bin/env bash
# Train on several GPUs (or, on a machine without one, on several CPU processes through gloo).
#
#   tools/dist_train.sh CONFIG NUM_GPUS [arguments of tools/train.py]
#
# Several nodes: run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment.
set -euo pipefail
exec "$(dirname "$0")/launch.sh" train.py 1 "$@"
