#!/bin/sh
# Sets up the environment and runs the test suite, a process a core; words are for pytest: sh sh/test.sh -k signal
set -e
sh "$(dirname "$0")/setup.sh"
. "$(dirname "$0")/_python.sh"
[ $# -gt 0 ] || { export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"; set -- -n auto --dist loadfile; }
exec python -m pytest "$@"
