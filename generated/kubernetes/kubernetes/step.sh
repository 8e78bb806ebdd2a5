#!/usr/bin/env bash
# kubernetes on Kubernetes: what the container of a step runs; the manifests call it with the step's name.
# Written by higgsc 0.1.0 from specs/kubernetes.yaml; change the spec and build again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"/../../..
: "${HF_TOKEN:?set the secret HF_TOKEN in the environment of the job}"
step=${1:?name a step}
run=runs/kubernetes
index=${JOB_COMPLETION_INDEX:-0} # of this pod among those of the step

# A JobSet that restarts starts all of its steps again. What has finished in this very JobSet stays finished.
finished="$run/state/$step.jobset"
if [ -n "${JOBSET_UID:-}" ] && [ -f "$finished" ] && [ "$(<"$finished")" = "$JOBSET_UID" ]; then
  echo "$step has finished before the restart" >&2
  exit 0
fi
if [ -e "$run/cancelled" ]; then
  echo "this run was cancelled; \`higgsc submit\` takes it up again" >&2
  exit 1
fi

case $step in
  prepare)
    set -- python -m higgsc run-step generated/kubernetes/jobs/prepare.json
    ;;
  train)
    # Every pod has a network of its own, so a fixed port is free.
    set -- python -m torch.distributed.run --nnodes=2 --nproc-per-node=8 \
      --node-rank="$index" --master-addr="${MASTER_ADDR:?the manifest sets it}" --master-port=29500 \
      -m higgsc run-step generated/kubernetes/jobs/train.json
    ;;
  merge)
    set -- python -m higgsc run-step generated/kubernetes/jobs/merge.json
    ;;
  evaluate)
    set -- python -m higgsc run-step generated/kubernetes/jobs/evaluate.json
    ;;
  *)
    echo "no step is called $step" >&2
    exit 2
    ;;
esac

mkdir -p "$run/state"
if [ "$index" = 0 ]; then
  rm -f "$run/stop" # the request that an earlier pod left behind
fi
# Kubernetes warns the first process alone, which is this shell: the file tells the trainers of all pods to save.
warnings=0
trap 'warnings=$((warnings + 1)); touch "$run/stop"' TERM
"$@" &
child=$!
seen=-1
while [ "$seen" != "$warnings" ]; do # a warning ends `wait` early
  seen=$warnings
  status=0
  wait "$child" || status=$?
done
# The first pod alone judges: its rank 0 writes the receipt, and Kubernetes needs one failed pod to start all again.
if [ "$status" != 0 ] || [ "$index" != 0 ]; then
  exit "$status"
fi
if [ ! -f "$run/receipts/$step.json" ]; then
  echo "$step stopped as asked and goes on in another pod" >&2
  exit 75 # the manifests say: start again
fi
printf '%s\n' "${JOBSET_UID:-}" >"$finished"
