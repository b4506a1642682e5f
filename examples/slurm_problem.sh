#!/bin/bash
# One problem on eight GPUs of two machines, one process for each: sbatch examples/slurm_problem.sh estimate.py
#SBATCH --job-name=estimate
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --output=estimate-%j.log
set -euo pipefail

source .venv/bin/activate
export BLPJAX_COMPILATION_CACHE="$HOME/.cache/blpjax-cluster"  # a directory that all machines share
srun --kill-on-bad-exit=1 python "$1"
