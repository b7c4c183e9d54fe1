#!/usr/bin/env bash
# Train on a Slurm cluster.
#
#   GPUS=16 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
#
# CPUS_PER_TASK (5) and SRUN_ARGS are taken from the environment as well.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "error: 3 arguments needed, got $#: PARTITION JOB_NAME CONFIG" >&2
    exit 1
fi
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
read -ra extra <<<"${SRUN_ARGS:-}"
exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 "${extra[@]}" \
    "${PYTHON:-python}" -u "$here/train.py" "$config" --launcher slurm "$@"
