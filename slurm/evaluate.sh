#!/bin/bash
# Measures samples against a reference under a protocol: an array of jobs that share the clips, each on one A800.
#
#   sbatch slurm/evaluate.sh --samples runs/landscape/samples --reference data/landscape/clips --protocol mmdiffusion \
#       --output runs/landscape/figures weights.i3d=weights/i3d_pretrained_400.pt \
#       weights.audioclip=weights/AudioCLIP-Full-Training.pt
#   sbatch --array=0-31 slurm/evaluate.sh --samples runs/landscape/samples …
#
# It can be submitted from any folder: relative paths are those of that folder. The arguments are passed to `mmldm
# evaluate`; `bash slurm/evaluate.sh --check …` checks protocol, weights and clips without a job. The task that makes the
# last features writes the report. If it is submitted again, it makes the missing ones. The figures do not depend on how
# many tasks share the clips.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
##SBATCH --constraint=a800   # your cluster's name for such nodes (sinfo --format=%f), if it has several kinds
#SBATCH --array=0-3          # 4 tasks share the clips
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#
# Leave:
#SBATCH --job-name=evaluate
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
announce mmldm evaluate "$@"
exec "${launcher[@]}" mmldm evaluate "$@"
