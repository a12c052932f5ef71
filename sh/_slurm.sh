# Sourced by the slurm_*.sh files.
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1  # Slurm runs a copy of the script: the repository is where sbatch was called

# Run an experiment's file, the first argument or another that the second names, by torchrun on all nodes and GPUs of the job.
# When it was stopped, by the time limit or by a node that died, the job is queued again; what fails within ten minutes is a
# mistake that would come back.
go_on() {
    script=$1
    shift
    case "${1:-}" in *.sh) script=$1; shift ;; esac
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    LAUNCH="torchrun --nnodes $SLURM_NNODES --nproc_per_node ${SLURM_GPUS_ON_NODE:-1} --rdzv_id $SLURM_JOB_ID"
    LAUNCH="$LAUNCH --rdzv_backend c10d --rdzv_endpoint $head:29500"
    export LAUNCH
    began=$(date +%s)
    srun sh "$script" "$@" && exit 0
    status=$?
    [ $(($(date +%s) - began)) -lt "${REQUEUE_AFTER:-600}" ] || scontrol requeue "$SLURM_JOB_ID"
    exit $status
}
