#!/bin/bash
# Trains the autoencoder's variants one after the other and compares them (Table 5), on 1 node of 8 A800s.
#
#   sbatch slurm/ladder.sh --config configs/autoencoder/landscape.yaml --config configs/cluster/a800.yaml \
#       --input data/clips_test --num-samples 256 --output runs/ladder \
#       shards=data/clips kl_vae=weights/sd unet=weights/sd
#
# Submit it from the project's root folder; the arguments go on to `mmldm ladder` (`--ladder configs/ablation/table6.yaml`
# for Table 6). Two minutes before its time is up the run saves and queues up again; a run that failed does too, up to
# three times from the same checkpoint. A ladder that was stopped carries on when it is submitted once more.
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
#SBATCH --job-name=ladder
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append   # queued again, it goes on in the same file
#SBATCH --requeue
#SBATCH --signal=USR1@120    # to the tasks, this many seconds before the time is up

set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/prologue.sh"

examine
export MMLDM_DOCTOR=off  # each rung would ask it again
exec mmldm ladder --launch "srun --kill-on-bad-exit=1" "$@"
