#!/usr/bin/env bash
# quickstart: the whole plan without a scheduler (1×CPU).
# Written by higgsc 0.1.0 from specs/quickstart.yaml; change the spec and build again.
#
# usage: run.sh [STEP...]      all steps in order, or those named: prepare train merge evaluate
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"/../../..

prepare() { # read the speech data, encode every recording once
  export PYTHONUNBUFFERED=1
  python -m higgsc run-step generated/quickstart/jobs/prepare.json
}

train() { # train the LoRA adapter
  export PYTHONUNBUFFERED=1
  python -m higgsc run-step generated/quickstart/jobs/train.json
}

merge() { # fold the adapter into the base
  export PYTHONUNBUFFERED=1
  python -m higgsc run-step generated/quickstart/jobs/merge.json
}

evaluate() { # score held-out samples, speak training prompts
  export PYTHONUNBUFFERED=1
  python -m higgsc run-step generated/quickstart/jobs/evaluate.json
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
  if grep -qs '^interrupted ' runs/quickstart/state/"$step"; then # it ends with 0: torchrun would lose another code
    echo "$step stopped before its end and has saved its work; run it again to take it up" >&2
    exit 75
  fi
done
