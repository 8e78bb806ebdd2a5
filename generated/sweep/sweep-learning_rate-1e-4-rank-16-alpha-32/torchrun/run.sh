#!/usr/bin/env bash
# sweep-learning_rate-1e-4-rank-16-alpha-32: the whole plan without a scheduler (8×H200).
# Written by higgsc 0.1.0 from specs/sweep.yaml; change the spec and build again.
#
# usage: run.sh [STEP...]      all steps in order, or those named: prepare train merge evaluate
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"/../../../..
: "${HF_TOKEN:?set the secret HF_TOKEN in the environment of the job}"

prepare() { # read the speech data, encode every recording once
  export PYTHONUNBUFFERED=1
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m higgsc run-step generated/sweep/sweep-learning_rate-1e-4-rank-16-alpha-32/jobs/prepare.json
}

train() { # train the LoRA adapter
  export PYTHONUNBUFFERED=1
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m torch.distributed.run --standalone --nproc-per-node=8 \
    -m higgsc run-step generated/sweep/sweep-learning_rate-1e-4-rank-16-alpha-32/jobs/train.json
}

merge() { # fold the adapter into the base
  export PYTHONUNBUFFERED=1
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m higgsc run-step generated/sweep/sweep-learning_rate-1e-4-rank-16-alpha-32/jobs/merge.json
}

evaluate() { # score held-out samples, speak held-out prompts
  export PYTHONUNBUFFERED=1
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m higgsc run-step generated/sweep/sweep-learning_rate-1e-4-rank-16-alpha-32/jobs/evaluate.json
}

if [ $# -eq 0 ]; then
  set -- prepare train merge evaluate
fi
for step in "$@"; do
  case $step in
    prepare | train | merge | evaluate) ;;
    *)
      echo "no step is called $step; see the head of $0" >&2
      exit 2
      ;;
  esac
done
trap 'exit 75' TERM INT # bash waits for the step first, which saves its work and ends
for step in "$@"; do
  echo "== $step" >&2
  "$step"
  if grep -qs '^interrupted ' runs/sweep-learning_rate-1e-4-rank-16-alpha-32/state/"$step"; then # it ends with 0: torchrun would lose another code
    echo "$step stopped before its end and has saved its work; run it again to take it up" >&2
    exit 75
  fi
done
