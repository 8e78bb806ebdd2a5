#!/usr/bin/env bash
# two-d: the whole plan without a scheduler (2×8×H100).
# Written by higgsc 0.1.0 from specs/two-d.yaml; change the spec and build again.
#
# usage: run.sh STEP...        one of: prepare train merge evaluate
#
# Steps on one node: run them on any node. Steps on 2 nodes: start them on each node at the same time, with
# NODE_RANK=0 to 1 and MASTER_ADDR set to the host name of node 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"/../../..
: "${HF_TOKEN:?set the secret HF_TOKEN in the environment of the job}"

prepare() { # read the speech data, encode every recording once
  export PYTHONUNBUFFERED=1
  export OMP_NUM_THREADS=64
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m higgsc run-step generated/two-d/jobs/prepare.json
}

train() { # train the LoRA adapter
  export PYTHONUNBUFFERED=1
  export OMP_NUM_THREADS=8
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m torch.distributed.run --nnodes=2 --nproc-per-node=8 \
    --node-rank="${NODE_RANK:?set NODE_RANK to the number of this node}" \
    --master-addr="${MASTER_ADDR:?set MASTER_ADDR to the host name of node 0}" \
    --master-port="${MASTER_PORT:-29500}" \
    -m higgsc run-step generated/two-d/jobs/train.json
}

merge() { # fold the adapter into the base
  export PYTHONUNBUFFERED=1
  export OMP_NUM_THREADS=64
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m higgsc run-step generated/two-d/jobs/merge.json
}

evaluate() { # score held-out samples, speak held-out prompts
  export PYTHONUNBUFFERED=1
  export OMP_NUM_THREADS=64
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  python -m higgsc run-step generated/two-d/jobs/evaluate.json
}

if [ $# -eq 0 ]; then
  echo 'name the steps to run: prepare train merge evaluate' >&2
  exit 2
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
