#!/bin/bash
# Many studies, each in a job of its own: sbatch examples/slurm_array.sh, with designs/design-1.toml to design-6.toml
# Jobs that are stopped are put back into the queue and go on where they were.
#SBATCH --job-name=designs
#SBATCH --array=1-6
#SBATCH --requeue
#SBATCH --time=08:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --output=design-%A-%a.log
set -euo pipefail

source .venv/bin/activate
srun python -m blpjax "designs/design-$SLURM_ARRAY_TASK_ID.toml" --resume
