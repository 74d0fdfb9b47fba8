#!/bin/bash
# Samples videos with sound from a trained DiT: an array of jobs that share the samples, each on one A800.
#
#   sbatch slurm/sample.sh --checkpoint runs/dit_L --task svg --num-samples 2048 --output runs/dit_L/samples \
#       --config configs/sample/audioset.yaml
#   sbatch --array=0-31 --constraint=v100 slurm/sample.sh --checkpoint runs/dit_L --task v2a --input videos …
#   sbatch --array=0-1 --gpus-per-node=8 --cpus-per-task=64 --mem=500G slurm/sample.sh … --processes 8
#
# Submit it from the project's root folder; the arguments are passed to `mmldm sample`. If it is
# submitted again, it makes the missing samples. The samples do not depend on how many tasks share them.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
#SBATCH --constraint=a800    # your cluster's name for such nodes (sinfo --format=%f); delete the line if there is none
#SBATCH --array=0-7          # 8 tasks share the samples
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#
# Leave:
#SBATCH --job-name=sample
#SBATCH --output=slurm-%x-%A-%a.out
#SBATCH --open-mode=append   # a requeued job appends to the same file
#SBATCH --requeue

set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/prologue.sh"

examine
exec srun --kill-on-bad-exit=1 mmldm sample "$@"
