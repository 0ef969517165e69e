#!/usr/bin/env bash
# Run the tests, setting everything up on first use:
#   ./run_tests.sh            all of tests/ but the slow ones (marked "slow"), in two processes
#   ./run_tests.sh --slow     the slow ones only, in two processes
#   ./run_tests.sh ARGUMENT.. pytest's own arguments, as they are
set -euo pipefail

root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
"${root}/tools/setup.sh"
. "${root}/tools/activate_python.sh"
. "${root}/tools/extra_path.sh"
cd -- "${root}"
parallel=(-n 2 --dist loadfile --no-loadscope-reorder tests/recipe tests/)
if [ $# -eq 0 ]; then
    # Two processes with a thread each. The tests of a file go on from what earlier ones of it made; the recipe's
    # take longest, and so come first.
    export OMP_NUM_THREADS=1
    set -- -m "not slow" "${parallel[@]}"
elif [ "$*" = --slow ]; then
    export OMP_NUM_THREADS=1
    set -- -m slow "${parallel[@]}"
fi
exec python -m pytest "$@"
