#!/usr/bin/env bash
# Run the recipe, setting everything up on first use:   ./run.sh --corpus mini
# Options are those of egs2/atm_librilight/ssl1/run.sh; tools/setup.sh says which environment variables it heeds.
set -euo pipefail

root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
"${root}/tools/setup.sh"
cd -- "${root}/egs2/atm_librilight/ssl1"
exec ./run.sh "$@"
