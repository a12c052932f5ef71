#!/bin/sh
# Sets up the environment and runs the test suite; what follows is for pytest: sh sh/test.sh tests/runs -k signal
set -e
sh "$(dirname "$0")/setup.sh"
. "$(dirname "$0")/_python.sh"
exec python -m pytest "$@"
