#!/usr/bin/env bash
# Run the tests, setting everything up on first use:   ./run_tests.sh [pytest's arguments; tests/ when none]
set -euo pipefail

root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
"${root}/tools/setup.sh"
. "${root}/tools/activate_python.sh"
. "${root}/tools/extra_path.sh"
cd -- "${root}"
[ $# -gt 0 ] || set -- tests/
exec python -m pytest "$@"
