#!/usr/bin/env bash
# One command for a table or figure of the paper; see local/paper.py.
set -e
set -u
set -o pipefail

. ./path.sh
exec python3 local/paper.py "$@"
