#!/bin/bash
# Evaluates the checkpoints of a DiT's training while it goes on, on one A800, in a job beside the training's.
#
#   sbatch slurm/evaluate_run.sh runs/landscape/dit_L --reference data/landscape/clips --protocol mmdiffusion \
#       --num-samples 512 --every 100000 --sampling configs/sample/landscape.yaml \
#       weights.i3d=weights/i3d_pretrained_400.pt weights.audioclip=weights/AudioCLIP-Full-Training.pt
#
# It can be submitted from any folder: relative paths are those of that folder. The arguments are passed to `mmldm
# evaluate-run --watch`; `bash slurm/evaluate_run.sh --check …` checks protocol, weights and reference without a job. It
# waits for a training that has not begun or is stopped, and ends after the last checkpoint of a finished one. Two
# minutes before the time limit the job is requeued, and resumes what it was at. The training does not wait for it: a
# checkpoint that was removed before its turn is left out.
#
# Edit for your cluster (or give the same options to sbatch, where they win):
##SBATCH --partition=gpu
##SBATCH --account=my_project
##SBATCH --constraint=a800   # your cluster's name for such nodes (sinfo --format=%f), if it has several kinds
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#
# Leave:
#SBATCH --job-name=evaluate_run
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append   # a requeued job appends to the same file
#SBATCH --requeue
#SBATCH --signal=B:USR1@120  # sent to this script 120 seconds before the time limit

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
announce mmldm evaluate-run --watch "$@"
trap 'echo "reached the time limit; requeueing job $SLURM_JOB_ID"; scontrol requeue "$SLURM_JOB_ID"' USR1
"${launcher[@]}" mmldm evaluate-run --watch "$@" &
child=$! status=0
wait "$child" || status=$?
if ((status == 128 + $(kill -l USR1))); then  # the signal ended the waiting; SLURM ends a requeued job soon after
    status=0
    wait "$child" || status=$?
fi
exit "$status"
