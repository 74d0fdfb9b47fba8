#!/bin/bash
# Encodes clip shards into latent shards with a trained autoencoder, on one A800 or as an array of such jobs.
#
#   sbatch slurm/encode_latents.sh --input data/landscape/clips --output data/landscape/latents \
#       --autoencoder runs/landscape/autoencoder
#   sbatch --array=0-7 slurm/encode_latents.sh --input …
#
# It can be submitted from any folder: relative paths are those of that folder. The arguments are passed to `python
# data_tools/shard.py latents`; `bash slurm/encode_latents.sh --check …` checks clips and autoencoder without a job. The
# tasks of an array share the shards, and any of them may fail. A stopped array resumes when it is submitted again.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
##SBATCH --constraint=a800   # your cluster's name for such nodes (sinfo --format=%f), if it has several kinds
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8    # for decoding the clips
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#
# Leave:
#SBATCH --job-name=encode_latents
#SBATCH --output=slurm-%x-%j.out
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
announce shard.py latents "$@"
exec "${launcher[@]}" python "$project/data_tools/shard.py" latents "$@"
