#!/usr/bin/env bash
# sweep: submit each step of the 4 points as a job array; a task starts when the same point's task before it
# has succeeded, whatever becomes of the other points.
# Written by higgsc 0.1.0 from specs/sweep.yaml; change the spec and build again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"/../../..
mkdir -p runs/sweep/logs # Slurm does not create the folder of a job's output
for run in \
  runs/sweep-learning_rate-1e-4-rank-16-alpha-32 \
  runs/sweep-learning_rate-1e-4-rank-64-alpha-128 \
  runs/sweep-learning_rate-2e-4-rank-16-alpha-32 \
  runs/sweep-learning_rate-2e-4-rank-64-alpha-128; do
  rm -f "$run/cancelled"
done

prepare=$(sbatch --parsable \
  generated/sweep/slurm/prepare.sbatch)
prepare=${prepare%%;*} # a federation prints "id;cluster"
echo prepare "$prepare"

train=$(sbatch --parsable \
  --dependency="aftercorr:$prepare" --kill-on-invalid-dep=yes \
  generated/sweep/slurm/train.sbatch)
train=${train%%;*} # a federation prints "id;cluster"
echo train "$train"

merge=$(sbatch --parsable \
  --dependency="aftercorr:$train" --kill-on-invalid-dep=yes \
  generated/sweep/slurm/merge.sbatch)
merge=${merge%%;*} # a federation prints "id;cluster"
echo merge "$merge"

evaluate=$(sbatch --parsable \
  --dependency="aftercorr:$merge" --kill-on-invalid-dep=yes \
  generated/sweep/slurm/evaluate.sbatch)
evaluate=${evaluate%%;*} # a federation prints "id;cluster"
echo evaluate "$evaluate"
