# Sourced by the other scripts: goes to the repository's root, picks the Python environment, and takes the first argument as
# the GPU (`cpu` for none; `0,1,2,3` for several, which torchrun then shares the work among). Without one it is GPU 0 where
# there is one, the CPU elsewhere; a GPU that was asked for and cannot be used is an error (LORS_GPU tells the programs).
# What is left in "$@" are flags for Python. LAUNCH in the environment is used in place of `python`, as the slurm_*.sh files do.
cd "$(dirname "$0")/.." || exit 1
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -f .venv/bin/activate ]; then
    . .venv/bin/activate
fi
case "${1:-}" in
    '' | -*) LORS_GPU=${LORS_GPU-${CUDA_VISIBLE_DEVICES:-}}; CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0} ;;
    cpu) LORS_GPU=''; CUDA_VISIBLE_DEVICES=''; shift ;;
    *,*)
        LORS_GPU=$1; CUDA_VISIBLE_DEVICES=$1
        LAUNCH=${LAUNCH:-torchrun --standalone --nproc_per_node $(echo "$1" | tr ',' '\n' | wc -l)}
        shift
        ;;
    *) LORS_GPU=$1; CUDA_VISIBLE_DEVICES=$1; shift ;;
esac
export LORS_GPU CUDA_VISIBLE_DEVICES
LAUNCH=${LAUNCH:-python}
# In a log file a progress bar need not be redrawn ten times a second.
[ -t 2 ] || export TQDM_MININTERVAL="${TQDM_MININTERVAL:-30}"
