# Sourced by the other scripts: goes to the repository's root, picks the Python environment, and takes the first argument as
# the GPU (default 0; `cpu` for none; `0,1,2,3` for several, which torchrun then shares the work among). What is left in "$@"
# are flags for Python. LAUNCH in the environment is used in place of `python`, as the slurm_*.sh files do.
. "$(dirname "$0")/_python.sh"
case "${1:-}" in
    '' | -*) CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} ;;
    cpu) CUDA_VISIBLE_DEVICES=''; shift ;;
    *,*)
        CUDA_VISIBLE_DEVICES=$1
        LAUNCH=${LAUNCH:-torchrun --standalone --nproc_per_node $(echo "$1" | tr ',' '\n' | wc -l)}
        shift
        ;;
    *) CUDA_VISIBLE_DEVICES=$1; shift ;;
esac
export CUDA_VISIBLE_DEVICES
LAUNCH=${LAUNCH:-python}
# In a log file a progress bar need not be redrawn ten times a second.
[ -t 2 ] || export TQDM_MININTERVAL="${TQDM_MININTERVAL:-30}"
