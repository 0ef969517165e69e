#!/usr/bin/env bash
# Libri-Light, unlabelled, and the labelled corpora that db.sh names. Stage 2 (local/segment_librilight.sh) cuts the recordings.
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}
SECONDS=0

nj=2                # The number of parallel jobs.
data_dir=data       # Where the data directories are written.
size=all            # small, medium, large, or all of them.

log "$0 $*"
. local/parse_options.sh

if [ $# -ne 0 ]; then
    log "Error: No positional arguments are required."
    exit 2
fi

. ./path.sh
. ./cmd.sh
. ./db.sh

if [ -z "${LIBRILIGHT:-}" ]; then
    log "Error: set LIBRILIGHT in db.sh: the folder that holds small, medium and large"
    exit 1
fi
case "${size}" in
    small|medium|large) sizes=${size} ;;
    all) sizes="small medium large" ;;
    *)
        log "Error: --size ${size}: write small, medium, large or all"
        exit 2 ;;
esac

if [[ $(realpath -m "${data_dir}") = *[[:space:]]* ]]; then
    log "Error: $(realpath -m "${data_dir}") has a space, which the data preparation of ESPnet's recipes does not bear:" \
        "move the recipe to a folder without"
    exit 1
fi

dir=${data_dir}/local/librilight
mkdir -p "${dir}"
# shellcheck disable=SC2086
python3 local/librilight.py find --root "${LIBRILIGHT}" --sizes ${sizes} \
    --output "${dir}/recordings"
local/data_labelled.sh --data_dir "${data_dir}" --nj "${nj}" "${dir}/test_sets"

log "Successfully finished. [elapsed=${SECONDS}s]"
