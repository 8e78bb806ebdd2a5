#!/usr/bin/env bash
# full: submit all steps; each starts when the one before it has succeeded.
# Written by higgsc 0.1.0 from specs/full.yaml; change the spec and build again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"/../../..
mkdir -p runs/full/logs # Slurm does not create the folder of a job's output
rm -f runs/full/cancelled

prepare=$(sbatch --parsable \
  generated/full/slurm/prepare.sbatch)
prepare=${prepare%%;*} # a federation prints "id;cluster"
echo prepare "$prepare"

train=$(sbatch --parsable \
  --dependency="afterok:$prepare" --kill-on-invalid-dep=yes \
  generated/full/slurm/train.sbatch)
train=${train%%;*} # a federation prints "id;cluster"
echo train "$train"

evaluate=$(sbatch --parsable \
  --dependency="afterok:$train" --kill-on-invalid-dep=yes \
  generated/full/slurm/evaluate.sbatch)
evaluate=${evaluate%%;*} # a federation prints "id;cluster"
echo evaluate "$evaluate"
