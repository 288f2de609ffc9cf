#!/usr/bin/env bash
# N processes on this machine, joined as one run, each with its share of the devices.
#
#   launch/local.sh N [main|evaluate|embed] FLAGS...
#   launch/local.sh 2 --config=configs/digits.py --workdir=runs/digits
#
# GPUs (CUDA_VISIBLE_DEVICES, else all) are split evenly over the processes. On CPUs
# JAX_NUM_CPU_DEVICES, of all processes together, is; without it each has one device.
# PYTHON names the interpreter (default: .venv/bin/python, else python3).
# Ctrl-C and SIGTERM are passed on; when one process dies, the others are ended.
set -uo pipefail
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || { echo "error: bash is older than 4.4" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} # called from any folder

usage() { echo "error: $1; usage: launch/local.sh N [main|evaluate|embed] FLAGS..." >&2; exit 2; }
[[ ${1-} =~ ^[1-9][0-9]*$ ]] || usage "the number of processes is '${1-}'"
count=$1 module=main
shift
case ${1-} in main | evaluate | embed) module=$1; shift ;; esac
python=${PYTHON:-$([[ -x $here/.venv/bin/python ]] && echo "$here/.venv/bin/python" || echo python3)}

gpus=()
if [[ ${JAX_PLATFORMS-} != cpu ]]; then
  if [[ -v CUDA_VISIBLE_DEVICES ]]; then # if empty, none
    IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi > /dev/null; then
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null)
  fi
fi
devices=${#gpus[@]} kind=GPUs
((devices)) || { devices=${JAX_NUM_CPU_DEVICES:-$count} kind="CPU devices"; }
[[ $devices =~ ^[1-9][0-9]*$ ]] || usage "JAX_NUM_CPU_DEVICES is '$devices'"
((devices % count == 0)) || usage "$devices $kind do not divide over $count processes"
share=$((devices / count))

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') ||
  usage "$python does not run"

set -m # each process is a group of its own: Ctrl-C comes through this script, once
pids=()
for ((i = 0; i < count; i++)); do
  if [[ $kind == GPUs ]]; then
    part=${gpus[*]:i * share:share}
    setting=CUDA_VISIBLE_DEVICES=${part// /,}
  else
    setting=JAX_NUM_CPU_DEVICES=$share
  fi
  command=(env "$setting" "$python" -m "eir_jax.$module" --coordinator="127.0.0.1:$port"
    --num_processes="$count" --process_id="$i" "$@")
  printf '+ %s\n' "${command[*]@Q}" >&2
  "${command[@]}" &
  pids+=("$!")
done

# shellcheck disable=SC2317 # the traps call it
pass_on() { kill -s "$1" -- "${pids[@]}" 2> /dev/null; }
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM
trap 'pass_on KILL' EXIT

living() { for pid in "${pids[@]}"; do kill -0 "$pid" 2> /dev/null && echo "$pid"; done; }

status=0
while living=$(living) && [[ $living ]]; do
  wait -n "${pids[@]}" # or until a signal came, which the trap has passed on
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2> /dev/null && continue
    wait "${pids[i]}"
    code=$? who=$i
    unset "pids[i]"
    ((code)) && status=$code
    ((code == 0 || code == 75 || code == 130)) && continue # done, or stopped by a signal
    # What a process knows of its end it tells the others itself, within seconds.
    for ((n = 0; n < 150; n++)); do [[ $(living) ]] && sleep 0.1; done
    [[ $(living) ]] || break 2
    how="ended with status $code"
    ((code > 128)) && how="was killed by signal $((code - 128))"
    echo "error: process $who of $count $how; the others are ended too; the same" \
      "command goes on from the newest checkpoint" >&2
    exit "$code"
  done
done
exit "$status"
