#!/bin/bash
# Samples videos with sound from a trained DiT: an array of jobs that share the samples, each on one A800.
#
#   sbatch slurm/sample.sh --checkpoint runs/landscape/dit_L --task svg --num-samples 2048 \
#       --output runs/landscape/samples --config configs/sample/landscape.yaml
#   sbatch --array=0-31 slurm/sample.sh --checkpoint runs/landscape/dit_L --task v2a --input videos …
#   sbatch slurm/sample.sh … --lossless   # WebDataset tars besides: PNG and 32-bit floats, to be measured
#   sbatch --array=0-1 --gpus-per-node=8 --cpus-per-task=64 --mem=500G slurm/sample.sh … --processes 8
#
# It can be submitted from any folder: relative paths are those of that folder. The arguments are passed to `mmldm
# sample`; `bash slurm/sample.sh --check …` checks weights and inputs without a job. If it is submitted again, it makes
# the missing samples. The samples do not depend on how many tasks share them.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
##SBATCH --constraint=a800   # your cluster's name for such nodes (sinfo --format=%f), if it has several kinds
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
folder=$(dirname "${BASH_SOURCE[0]}")  # of this file, unless SLURM runs a copy of it: then of the file given to sbatch
if [[ ! -f $folder/prologue.sh && -n ${SLURM_JOB_ID:-} ]]; then
    job=$(scontrol show job "$SLURM_JOB_ID" || true)
    job=${job#*Command=}
    folder=$(dirname "${job%%[[:space:]]*}")
fi
[[ -f $folder/prologue.sh ]] || folder=${SLURM_SUBMIT_DIR:-.}/slurm
source "$folder/prologue.sh"

examine
announce mmldm sample "$@"
exec "${launcher[@]}" mmldm sample "$@"
