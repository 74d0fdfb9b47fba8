#!/bin/bash
# Encodes clip shards into latent shards with a trained autoencoder, on one A800 or as an array of such jobs.
#
#   sbatch slurm/encode_latents.sh --input data/clips --output data/latents --autoencoder runs/autoencoder
#   sbatch --array=0-7 --constraint=v100 slurm/encode_latents.sh --input …
#
# Submit it from the project's root folder; the arguments are passed to `python data_tools/shard.py latents`. The tasks
# of an array share the shards, and any of them may fail. A stopped array resumes when it is submitted again.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
#SBATCH --constraint=a800    # your cluster's name for such nodes (sinfo --format=%f); delete the line if there is none
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
source "$SLURM_SUBMIT_DIR/slurm/prologue.sh"

examine
exec srun --kill-on-bad-exit=1 python data_tools/shard.py latents "$@"
