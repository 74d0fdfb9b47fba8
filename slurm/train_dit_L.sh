#!/bin/bash
# Trains DiT-L on latent shards, on 2 nodes of 8 A800s (ours; the paper trains on 8 A800s).
#
#   sbatch slurm/train_dit_L.sh shards=data/latents run=runs/dit_L
#   sbatch --constraint=v100 --cpus-per-task=5 slurm/train_dit_L.sh --config configs/cluster/v100.yaml \
#       shards=data/latents run=runs/dit_L
#
# Submit it from the project's root folder; the arguments are passed to `mmldm train dit`. Two minutes before the
# time limit the run saves, and the job is requeued. After a failure the job is also requeued, up to three times from
# the same checkpoint. A run that was stopped resumes when it is submitted again.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
#SBATCH --constraint=a800    # your cluster's name for such nodes (sinfo --format=%f); delete the line if there is none
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8  # one task a GPU
#SBATCH --cpus-per-task=8    # for the task and its loader workers (training.workers)
#SBATCH --mem=0              # all memory of the node
#SBATCH --time=24:00:00
#
# Leave:
#SBATCH --job-name=train_dit_L
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append   # a requeued job appends to the same file
#SBATCH --requeue
#SBATCH --signal=USR1@120    # sent to the tasks 120 seconds before the time limit

set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/prologue.sh"

exec mmldm train dit --under "srun --kill-on-bad-exit=1" \
    --config configs/dit/L.yaml --config configs/cluster/a800.yaml "$@"
