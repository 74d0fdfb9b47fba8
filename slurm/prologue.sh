# The common part of the job scripts in this folder: working folder, Python environment, threads, a line about the job,
# and the function `examine`, which runs the doctor. `mmldm train --under` runs the doctor itself.
#
# This is not a job script. The job scripts source it through SLURM_SUBMIT_DIR, because SLURM runs a copy of them in
# another folder. Add here what every job on your cluster needs.

cd "$SLURM_SUBMIT_DIR"

# module load cuda/13.0          # if your cluster provides software as modules
# export NCCL_SOCKET_IFNAME=ib0  # if NCCL chooses a network that does not connect the nodes
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"  # INFO prints network and topology

if [[ -f .venv/bin/activate ]]; then
    source .venv/bin/activate
fi
if ! command -v mmldm > /dev/null; then
    echo "slurm/prologue.sh: no mmldm in $PWD/.venv nor on PATH; 'make install' puts it there" >&2
    exit 1
fi

export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun of SLURM 22.05 to 23.11 does not inherit it from sbatch
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}"
export PYTHONUNBUFFERED=1  # lines appear in the log at once

echo "$(date --iso-8601=seconds) job $SLURM_JOB_ID" \
    "($SLURM_JOB_NAME${SLURM_ARRAY_TASK_ID:+, array task $SLURM_ARRAY_TASK_ID}), restart ${SLURM_RESTART_COUNT:-0}:" \
    "${SLURM_NTASKS:-1} task(s) on $SLURM_JOB_NODELIST, ${SLURM_GPUS_ON_NODE:-0} GPU(s) a node, $(command -v mmldm)"

# Checks machines, environment and data on all nodes, in seconds. Errors end the job, which is not requeued.
# MMLDM_DOCTOR=off skips the checks.
examine() {
    if [[ "${MMLDM_DOCTOR:-on}" != off ]] && ! srun --kill-on-bad-exit=1 mmldm doctor --quick "$@"; then
        echo "slurm/prologue.sh: not started because of the errors above; MMLDM_DOCTOR=off skips this check" >&2
        exit 1
    fi
}
