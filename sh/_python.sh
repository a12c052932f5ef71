# Sourced by the other scripts: goes to the repository's root and picks the Python environment.
cd "$(dirname "$0")/.." || exit 1
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -f .venv/bin/activate ]; then
    . .venv/bin/activate
fi
