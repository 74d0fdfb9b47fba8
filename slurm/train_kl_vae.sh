#!/bin/bash
# Fine-tunes a KL-VAE's decoder on clip shards, on 1 node of 8 A800s.
#
#   sbatch slurm/train_kl_vae.sh --config configs/cluster/a800.yaml shards=data/landscape/clips kl_vae=weights/sd15 \
#       lpips=weights/vgg16.pth run=runs/landscape/kl_vae
#   sbatch --cpus-per-task=5 slurm/train_kl_vae.sh --config configs/cluster/v100.yaml training.precision=fp32 \
#       shards=data/landscape/clips kl_vae=weights/sd15 lpips=weights/vgg16.pth run=runs/landscape/kl_vae
#       # fp32, since Stable Diffusion's KL-VAE can overflow fp16
#
# The settings are configs/kl_vae/finetune.yaml, for any data set; name the cluster. `mmldm doctor --weights` tells where
# the weights come from.
#
# It can be submitted from any folder: relative paths are those of that folder. The arguments are passed to `mmldm train
# kl_vae`; `bash slurm/train_kl_vae.sh --check …` with the same arguments checks them, the shards and the weights
# without a job. Two minutes before the time limit the run saves, and the job is requeued. After a failure the job is
# also requeued, up to three times from the same checkpoint. A run that was stopped resumes when it is submitted again.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
##SBATCH --constraint=a800   # your cluster's name for such nodes (sinfo --format=%f), if it has several kinds
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
folder=$(dirname "${BASH_SOURCE[0]}")  # of this file, unless SLURM runs a copy of it: then of the file given to sbatch
if [[ ! -f $folder/prologue.sh && -n ${SLURM_JOB_ID:-} ]]; then
    job=$(scontrol show job "$SLURM_JOB_ID" || true)
    job=${job#*Command=}
    folder=$(dirname "${job%%[[:space:]]*}")
fi
[[ -f $folder/prologue.sh ]] || folder=${SLURM_SUBMIT_DIR:-.}/slurm
source "$folder/prologue.sh"

exec mmldm train kl_vae --under "$under" --config "$project/configs/kl_vae/finetune.yaml" "$@"
