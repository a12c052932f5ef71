#!/bin/sh
# Sets up the environment and runs the whole test suite: sh sh/test.sh [more pytest flags]
set -e
sh "$(dirname "$0")/setup.sh"
. "$(dirname "$0")/_env.sh"
exec $LAUNCH -m pytest "$@"
