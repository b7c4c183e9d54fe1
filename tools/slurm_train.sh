#!/usr/bin/env bash
# Train on a Slurm cluster.
#
#   GPUS=16 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
#   GPUS=0 TASKS=4 tools/slurm_train.sh ...     no GPUs: 4 CPU processes (default: 1) through gloo
#
# CPUS_PER_TASK (default 5), TASKS_PER_NODE (default: TASKS, at most 8) and SRUN_ARGS are environment variables too.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "error: 3 arguments needed, got $#: PARTITION JOB_NAME CONFIG" >&2
    exit 1
fi
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8}
options=(--partition="$partition" --job-name="$job")
if [ "$gpus" = 0 ]; then
    tasks=${TASKS:-1}
    per_node=${TASKS_PER_NODE:-$((tasks < 8 ? tasks : 8))}
else
    tasks=$gpus # one process per GPU
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    options+=(--gres="gpu:$per_node")
fi
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
# bash < 4.4 treats an empty array as an unbound variable, hence the longer form of the expansion below.
read -ra extra <<<"${SRUN_ARGS:-}"
exec srun "${options[@]}" --ntasks="$tasks" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${extra[@]+"${extra[@]}"} \
    "${PYTHON:-python}" -u "$here/train.py" "$config" --launcher slurm "$@"
