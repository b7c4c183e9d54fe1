#!/usr/bin/env bash
# Runs torchrun for dist_train.sh and dist_test.sh.
#
#   tools/launch.sh TOOL N [the tool's N positional arguments] NUM_GPUS [further arguments of the tool]
#
# MAX_RESTARTS in the environment sets how often all processes are restarted after one fails (default 0).
set -euo pipefail
tool=$1 count=$2
shift 2
if [ $# -le "$count" ]; then
    echo "error: $((count + 1)) arguments needed, got $#: CONFIG $([ "$count" = 2 ] && echo 'CHECKPOINT ')NUM_GPUS" >&2
    exit 1
fi
positional=("${@:1:count}")
shift "$count"
gpus=$1
shift
if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "error: NUM_GPUS must be a number of at least 1, got '$gpus'" >&2
    exit 1
fi
here=$(cd "$(dirname "$0")" && pwd)
MMSB_LAUNCH="$(date +%s)-$$-$RANDOM" # restarted processes go on with the run of this launch
export MMSB_LAUNCH
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
if [ "${NNODES:-1}" = 1 ]; then # each run picks its own free port
    nodes=(--standalone --local-addr=127.0.0.1)
else
    nodes=(--nnodes="$NNODES" --node_rank="${NODE_RANK:-0}")
    nodes+=(--master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${nodes[@]}" \
    --nproc_per_node="$gpus" --max-restarts="${MAX_RESTARTS:-0}" \
    "$here/$tool" "${positional[@]}" --launcher pytorch "$@"
