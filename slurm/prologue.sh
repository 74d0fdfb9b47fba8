# What the jobs beside this file have in common: the folder, the Python environment, the threads, one line of facts, and
# `examine`, with which each begins that `mmldm train --launch` does not begin: that one asks the doctor by itself.
#
# Not a job of its own: they source it by way of SLURM_SUBMIT_DIR, because SLURM runs a copy of a job's script far from
# here. This is the place for what every job on your cluster needs.

cd "$SLURM_SUBMIT_DIR"

# module load cuda/13.0          # if your cluster hands out software by modules
# export NCCL_SOCKET_IFNAME=ib0  # if NCCL picks a network that does not join the nodes
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"  # INFO says which network and topology NCCL found

if [[ -f .venv/bin/activate ]]; then
    source .venv/bin/activate
fi
if ! command -v mmldm > /dev/null; then
    echo "slurm/prologue.sh: no mmldm in $PWD/.venv nor on PATH; 'make install' puts it there" >&2
    exit 1
fi

export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun of SLURM 22.05 to 23.11 does not take it over by itself
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}"
export PYTHONUNBUFFERED=1  # the log shows a line when it is printed

echo "$(date --iso-8601=seconds) job $SLURM_JOB_ID" \
    "($SLURM_JOB_NAME${SLURM_ARRAY_TASK_ID:+, array task $SLURM_ARRAY_TASK_ID}), restart ${SLURM_RESTART_COUNT:-0}:" \
    "${SLURM_NTASKS:-1} task(s) on $SLURM_JOB_NODELIST, ${SLURM_GPUS_ON_NODE:-0} GPU(s) a node, $(command -v mmldm)"

# Looks on all nodes, in seconds, whether machines, environment and data are in order; trouble ends the job, which is not
# queued again. MMLDM_DOCTOR=off leaves it out.
examine() {
    if [[ "${MMLDM_DOCTOR:-on}" != off ]] && ! srun --kill-on-bad-exit=1 mmldm doctor --quick "$@"; then
        echo "slurm/prologue.sh: not begun, because of the trouble above; MMLDM_DOCTOR=off begins all the same" >&2
        exit 1
    fi
}
