# Sourced by the other scripts: goes to the repository's root, picks the Python environment, and takes the first
# argument as the GPU (default 0; `cpu` for none). What is left in "$@" are flags for Python.
cd "$(dirname "$0")/.." || exit 1
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -f .venv/bin/activate ]; then
    . .venv/bin/activate
fi
case "${1:-}" in
    '' | -*) CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} ;;
    cpu) CUDA_VISIBLE_DEVICES=''; shift ;;
    *) CUDA_VISIBLE_DEVICES=$1; shift ;;
esac
export CUDA_VISIBLE_DEVICES
# In a log file a progress bar need not be redrawn ten times a second.
[ -t 2 ] || export TQDM_MININTERVAL="${TQDM_MININTERVAL:-30}"
