#!/usr/bin/env bash
# One run over all hosts of a Cloud TPU pod slice: a process on each host.
#
#   launch/tpu_pod.sh NAME ZONE FLAGS...
#   launch/tpu_pod.sh v5e-16 us-west4-a --config=configs/cifar10.py --workdir=/mnt/run
#
# On every host this repository lies in ~/eir_jax (or REMOTE_DIR) with a .venv that has
# jax[tpu], and the workdir on a file system that all of them share (Filestore, or a
# bucket mounted by gcsfuse). The hosts find each other. MODULE=evaluate (or embed) runs
# that instead of main. The same command goes on from the newest checkpoint.
set -euo pipefail

(($# >= 3)) || { echo "usage: launch/tpu_pod.sh NAME ZONE FLAGS..." >&2; exit 2; }
name=$1 zone=$2
shift 2

printf -v flags ' %q' "$@"
remote="cd ${REMOTE_DIR:-eir_jax} && exec .venv/bin/python -m eir_jax.${MODULE:-main}$flags"
command=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all
  --command="$remote")
printf '+ %s\n' "${command[*]@Q}"
exec "${command[@]}"
