#!/usr/bin/env bash
# two-d: submit all steps; each starts when the one before it has succeeded.
# Written by higgsc 0.1.0 from specs/two-d.yaml; change the spec and build again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"/../../..
mkdir -p runs/two-d/logs # Slurm does not create the folder of a job's output
rm -f runs/two-d/cancelled

prepare=$(sbatch --parsable \
  generated/two-d/slurm/prepare.sbatch)
prepare=${prepare%%;*} # a federation prints "id;cluster"
echo prepare "$prepare"

train=$(sbatch --parsable \
  --dependency="afterok:$prepare" --kill-on-invalid-dep=yes \
  generated/two-d/slurm/train.sbatch)
train=${train%%;*} # a federation prints "id;cluster"
echo train "$train"

merge=$(sbatch --parsable \
  --dependency="afterok:$train" --kill-on-invalid-dep=yes \
  generated/two-d/slurm/merge.sbatch)
merge=${merge%%;*} # a federation prints "id;cluster"
echo merge "$merge"

evaluate=$(sbatch --parsable \
  --dependency="afterok:$merge" --kill-on-invalid-dep=yes \
  generated/two-d/slurm/evaluate.sbatch)
evaluate=${evaluate%%;*} # a federation prints "id;cluster"
echo evaluate "$evaluate"
