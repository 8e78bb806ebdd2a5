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
for step in "$@"; do
  echo "== $step" >&2
  "$step"
done
