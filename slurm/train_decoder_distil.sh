#!/bin/bash
# Distils the signal decoder of a trained autoencoder to few steps, on 1 node of 8 A800s.
#
#   sbatch slurm/train_decoder_distil.sh --config configs/decoder-distil/landscape.yaml \
#       --config configs/cluster/a800.yaml shards=data/landscape/clips autoencoder=runs/landscape/autoencoder \
#       run=runs/landscape/decoder_distil
#
# It can be submitted from any folder: relative paths are those of that folder. The arguments are passed to `mmldm train
# decoder-distil`; `bash slurm/train_decoder_distil.sh --check …` with the same arguments checks them, the shards and the
# weights without a job. Two minutes before the time limit the run saves, and the job is requeued. After a failure the
# job is also requeued, up to three times from the same checkpoint. A run that was stopped resumes when it is submitted
# again.
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
#SBATCH --job-name=train_decoder_distil
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

exec mmldm train decoder-distil --under "$under" "$@"
