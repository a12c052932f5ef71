#!/bin/sh
# Installs the requirements into the active environment, or into .venv when none is active.
set -e
cd "$(dirname "$0")/.."
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -f .venv/bin/activate ] || python3 -m venv .venv
    . .venv/bin/activate
fi
echo "Installing requirements (some minutes the first time) ..."
python -m pip install --quiet --disable-pip-version-check -r requirements.txt
