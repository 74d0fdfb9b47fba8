#!/bin/bash
# Fine-tunes a KL-VAE's decoder on clip shards, on 1 node of 8 A800s.
#
#   sbatch slurm/train_kl_vae.sh shards=data/clips kl_vae=weights/sd/vae lpips=weights/vgg16-397923af.pth \
#       run=runs/kl_vae
#   sbatch --constraint=v100 --cpus-per-task=5 slurm/train_kl_vae.sh --config configs/cluster/v100.yaml \
#       training.precision=fp32 shards=data/clips kl_vae=weights/sd/vae lpips=weights/vgg16-397923af.pth \
#       run=runs/kl_vae    # in fp16 Stable Diffusion's KL-VAE can overflow
#
# Submit it from the project's root folder; the arguments go on to `mmldm train kl_vae`. Two minutes before its time
# is up the run saves and queues up again; a run that failed does too, up to three times from the same checkpoint. One
# that was stopped carries on when it is submitted once more.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
#SBATCH --constraint=a800    # your cluster's name for such nodes (sinfo --format=%f); delete it if there is none
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8  # one task a GPU
#SBATCH --cpus-per-task=8    # for the task and its loader workers (training.workers)
#SBATCH --mem=0              # all that a node has
#SBATCH --time=24:00:00
#
# Leave:
#SBATCH --job-name=train_kl_vae
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append   # queued again, it goes on in the same file
#SBATCH --requeue
#SBATCH --signal=USR1@120    # to the tasks, this many seconds before the time is up

set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/prologue.sh"

exec mmldm train kl_vae --launch "srun --kill-on-bad-exit=1" \
    --config configs/kl_vae/finetune.yaml --config configs/cluster/a800.yaml "$@"
