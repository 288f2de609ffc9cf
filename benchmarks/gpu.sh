#!/usr/bin/env bash
# All benchmarks that a GPU is needed for, JSON and one log under a folder:
#
#   benchmarks/gpu.sh OUT                  # everything, 40 minutes at most
#   benchmarks/gpu.sh OUT nearest step     # some of it
#   SMALL=1 benchmarks/gpu.sh OUT          # a rehearsal on a CPU: minutes, no results
#
# nearest    10,000 queries over 50,000 rows
# step       a step of the paper's setting, and its parts
# kernels    the ten most expensive kernels of a step
# large      a step with a bank of 1.28 million rows
# bank       the softmax over 50,000, 1.28 million and 10 million rows
# precision  loss and gradient in float32 and bfloat16 against float64 on the host
# torch      a step of the paper's setting, ours and PyTorch's by turns
# batches    the same with batches of 512 and 2,048
#
# In this order, so that a machine lent for minutes gives the first ones: the host's
# float64 took more than three minutes, and PyTorch had not compiled its step after 165 s
# on 16 cores beside an H100. What fails is said at the end, and the rest still runs. A
# part may take LIMIT seconds (300). PYTHON names the interpreter.
set -uo pipefail
out=$(mkdir -p "${1:?usage: benchmarks/gpu.sh OUT [PART...]}" && cd "$1" && pwd) || exit 2
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
parts=("$@")
[ $# -gt 0 ] || parts=(nearest step kernels large bank precision torch batches)

model="--model resnet18 --width 64" rows=50000 many=1280000 most=10000000
batch=128 batches="512 2048" time="--seconds 5 --repeats 5" queries=""
if [ -n "${SMALL:-}" ]; then
  model="--model resnet10 --width 4 --image_size 8" rows=500 many=2000 most=4000
  batch=32 batches=64 time="--steps 2 --repeats 1" queries="--rows 2000 --queries 200"
fi

limit=${LIMIT:-300}
failed=()
run() {  # NAME, then a script of benchmarks/ and its flags
  local name=$1 status=0
  shift
  echo "== $name: python benchmarks/$*"
  # shellcheck disable=SC2086
  timeout "$limit" "${PYTHON:-python}" benchmarks/$* --json \
    >"$out/$name.json" 2>>"$out/log.txt" || status=$?
  if [ $status -ne 0 ]; then
    failed+=("$name")
    [ $status -ne 124 ] || echo "$name took more than $limit s" >>"$out/log.txt"
    tail -3 "$out/log.txt"
  fi
}

for part in "${parts[@]}"; do
  case $part in
    precision) run precision "precision.py $model" ;;
    step) run step "train_step.py $model --rows $rows --batch $batch $time --no_torch --breakdown" ;;
    torch) run torch "train_step.py $model --rows $rows --batch $batch $time" ;;
    kernels) run kernels "kernels.py $model --rows $rows --batch $batch" ;;
    large) run large "train_step.py $model --rows $many --batch $batch $time --no_torch" ;;
    nearest) run nearest "nearest.py --k 8 200 --repeats 5 --alone $queries" ;;
    bank) run bank "memory_bank.py --rows $rows $many $most --memory 40" ;;
    batches) run batches "train_step.py $model --rows $rows --batch $batches $time" ;;
    *)
      echo "error: there is no part '$part'; see the head of benchmarks/gpu.sh"
      exit 2
      ;;
  esac
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}; why is in $out/log.txt"
  exit 1
fi
echo "all is in $out"
