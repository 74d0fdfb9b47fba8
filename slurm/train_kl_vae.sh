#!/bin/bash
# Fine-tunes a KL-VAE's decoder on clip shards, on 1 node of 8 A800s.
#
#   sbatch slurm/train_kl_vae.sh shards=data/clips kl_vae=weights/sd/vae lpips=weights/vgg16-397923af.pth \
#       run=runs/kl_vae
#   sbatch --constraint=v100 --cpus-per-task=5 slurm/train_kl_vae.sh --config configs/cluster/v100.yaml \
#       training.precision=fp32 shards=data/clips kl_vae=weights/sd/vae lpips=weights/vgg16-397923af.pth \
#       run=runs/kl_vae    # fp32, since Stable Diffusion's KL-VAE can overflow fp16
#
# Submit it from the project's root folder; the arguments are passed to `mmldm train kl_vae`. Two minutes before the
# time limit the run saves, and the job is requeued. After a failure the job is also requeued, up to three times from
# the same checkpoint. A run that was stopped resumes when it is submitted again.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
#SBATCH --constraint=a800    # your cluster's name for such nodes (sinfo --format=%f); delete the line if there is none
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8  # one task a GPU
#SBATCH --cpus-per-task=8    # for the task and its loader workers (training.workers)
#SBATCH --mem=0              # all memory of the node
#SBATCH --time=24:00:00
#
# Leave:
#SBATCH --job-name=train_kl_vae
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append   # a requeued job appends to the same file
#SBATCH --requeue
#SBATCH --signal=USR1@120    # sent to the tasks 120 seconds before the time limit

set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/prologue.sh"

exec mmldm train kl_vae --under "srun --kill-on-bad-exit=1" \
    --config configs/kl_vae/finetune.yaml --config configs/cluster/a800.yaml "$@"
