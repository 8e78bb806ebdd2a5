#!/usr/bin/env bash
# full: all steps through TorchX, each when the one before it has succeeded.
# Written by higgsc 0.1.0 from specs/full.yaml; change the spec and build again.
#
# usage: run.sh SCHEDULER [KEY=VALUE,...]      such as: run.sh local_cwd, run.sh slurm partition=gpu
#
# For Slurm, the site says: time=24:00:00
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"/../../..
: "${HF_TOKEN:?set the secret HF_TOKEN in the environment of the job}"
scheduler=${1:?name a scheduler of TorchX: local_cwd, slurm, kubernetes}
arguments=${2:-}
if [ "$scheduler" = slurm ] && [ -z "$arguments" ]; then
  arguments=time=24:00:00
fi

torchx run --scheduler "$scheduler" --scheduler_args "$arguments" --wait generated/full/torchx/components.py:prepare
torchx run --scheduler "$scheduler" --scheduler_args "$arguments" --wait generated/full/torchx/components.py:train
torchx run --scheduler "$scheduler" --scheduler_args "$arguments" --wait generated/full/torchx/components.py:evaluate
