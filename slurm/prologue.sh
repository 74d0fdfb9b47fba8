# The common part of the job scripts in this folder: Python environment, threads, a line about the job, how its tasks
# are started, and the function `examine`, which runs the doctor. `mmldm train --under` runs the doctor itself.
#
# This is not a job script; the job scripts, and the jobs of `mmldm launch`, source it. Add here what every job on your
# cluster needs. A job starts in the folder in which sbatch was called.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)  # the folder with slurm/ and configs/

# module load cuda/13.0          # if your cluster provides software as modules
# export NCCL_SOCKET_IFNAME=ib0  # if NCCL chooses a network that does not connect the nodes
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"  # INFO prints network and topology

launcher=(srun --kill-on-bad-exit=1)  # starts the tasks of a job
# In a container that has mmldm, one of these (see docs/train_on_slurm.md); the batch script itself still runs outside
# of it:
# launcher+=(--container-image="$project/mmldm.sqsh" --container-mounts="$project:$project,$PWD:$PWD" # pyxis, enroot
#     --container-workdir="$PWD")
# launcher+=(apptainer exec --nv --bind "$project,$PWD" --pwd "$PWD" "$project/mmldm.sif")
# inside=mmldm
under=$(printf '%q ' "${launcher[@]}" ${inside:-})  # the same as one text, for `mmldm train --under`
under=${under% }

for folder in "$project" "$PWD"; do
    if [[ -f $folder/.venv/bin/activate ]]; then
        source "$folder/.venv/bin/activate"
        break
    fi
done
if ! command -v mmldm > /dev/null; then
    echo "slurm/prologue.sh: no mmldm in $project/.venv, in $PWD/.venv nor on PATH; 'make install' puts it there" >&2
    exit 1
fi

if [[ " $* " == *" --check "* ]]; then  # only checks the arguments and what they name, here and now
    launcher=()
elif [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "slurm/prologue.sh: no SLURM job; submit the script with sbatch, or give --check to check its inputs" >&2
    exit 2
else
    # srun of SLURM 22.05 to 23.11 does not inherit it from sbatch.
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}"
    export PYTHONUNBUFFERED=1  # lines appear in the log at once
    echo "$(date --iso-8601=seconds) job $SLURM_JOB_ID" \
        "($SLURM_JOB_NAME${SLURM_ARRAY_TASK_ID:+, array task $SLURM_ARRAY_TASK_ID})," \
        "restart ${SLURM_RESTART_COUNT:-0}: ${SLURM_NTASKS:-1} task(s) on $SLURM_JOB_NODELIST," \
        "${SLURM_GPUS_ON_NODE:-0} GPU(s) a node, $(command -v mmldm)"
fi

# Checks machines, environment and data on all nodes, in seconds. Errors end the job, which is not requeued.
# MMLDM_DOCTOR=off skips the checks.
examine() {
    if ((${#launcher[@]})) && [[ ${MMLDM_DOCTOR:-on} != off ]] && ! "${launcher[@]}" mmldm doctor --quick "$@"; then
        echo "slurm/prologue.sh: not started because of the errors above; MMLDM_DOCTOR=off skips this check" >&2
        exit 1
    fi
}

# Prints the commit of the project and the command. `mmldm train` prints and records them itself.
announce() {
    local code
    code=$(git -C "$project" describe --always --dirty --abbrev=40 --exclude='*' 2> /dev/null || echo unknown)
    echo "commit ${code/%-dirty/, with changes}; command:$(printf ' %q' "$@")"
}
