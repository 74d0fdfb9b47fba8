#!/bin/bash
# Trains the autoencoder's variants one after the other and compares them (Table 5), on 1 node of 8 A800s.
#
#   sbatch slurm/ablation.sh --config configs/autoencoder/landscape.yaml --config configs/cluster/a800.yaml \
#       --input data/landscape/clips_test --num-samples 256 --output runs/landscape/ablation \
#       shards=data/landscape/clips kl_vae=weights/sd15 unet=weights/sd15
#
# It can be submitted from any folder: relative paths are those of that folder. The arguments are passed to `mmldm
# ablation` (for Table 6: `--variants configs/ablation/table6.yaml`); `bash slurm/ablation.sh --check …` checks them
# without a job. Two minutes before the time limit the current run saves, and the job is requeued. After a failure the
# job is also requeued, up to three times from the same checkpoint. A stopped ablation resumes when it is submitted
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
#SBATCH --job-name=ablation
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

examine
export MMLDM_DOCTOR=off  # it has run; else each variant's training runs it again
announce mmldm ablation "$@"
exec mmldm ablation --under "$under" "$@"
