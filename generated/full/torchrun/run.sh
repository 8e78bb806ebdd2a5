#!/usr/bin/env bash
# full: the whole plan without a scheduler (2×8×H200).
# Written by higgsc 0.1.0 from specs/full.yaml; change the spec and build again.
#
# usage: run.sh STEP...        one of: prepare train evaluate
#
# Steps on one node: run them on any node. Steps on 2 nodes: start them on each node at the same time, with
# NODE_RANK=0 to 1 and MASTER_ADDR set to the host name of node 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"/../../..
: "${HF_TOKEN:?set the secret HF_TOKEN in the environment of the job}"

prepare() { # read the speech data, encode every recording once
  export PYTHONUNBUFFERED=1
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m higgsc run-step generated/full/jobs/prepare.json
}

train() { # train the whole model
  export PYTHONUNBUFFERED=1
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m torch.distributed.run --nnodes=2 --nproc-per-node=8 \
    --node-rank="${NODE_RANK:?set NODE_RANK to the number of this node}" \
    --master-addr="${MASTER_ADDR:?set MASTER_ADDR to the host name of node 0}" \
    --master-port="${MASTER_PORT:-29500}" \
    -m higgsc run-step generated/full/jobs/train.json
}

evaluate() { # score held-out samples, speak held-out prompts
  export PYTHONUNBUFFERED=1
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m higgsc run-step generated/full/jobs/evaluate.json
}

if [ $# -eq 0 ]; then
  echo 'name the steps to run: prepare train evaluate' >&2
  exit 2
fi
for step in "$@"; do
  case $step in
    prepare | train | evaluate) ;;
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
