#!/bin/bash
# One study on many machines: sbatch examples/slurm_study.sh examples/study.toml
# This job only hands out batches and writes them. It lasts as long as the study; if it does not, submit it again.
#SBATCH --job-name=study
#SBATCH --time=24:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=8G
#SBATCH --output=study-%j.log
set -euo pipefail

source .venv/bin/activate
export BLPJAX_COMPILATION_CACHE="$HOME/.cache/blpjax-cluster"  # a directory that all machines share
srun python examples/slurm_study.py "$1"
