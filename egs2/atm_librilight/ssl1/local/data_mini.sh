#!/usr/bin/env bash
# Multi-voice synthetic English, made on the spot, plus the eight real utterances of ESPnet's mini_an4.
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
download_dir=downloads/mini
scale=1             # Multiplies the minutes of every set.

log "$0 $*"
. local/parse_options.sh

if [ $# -ne 0 ]; then
    log "Error: No positional arguments are required."
    exit 2
fi

. ./path.sh
. ./cmd.sh

espnet_root=${ATM_ESPNET_ROOT:-$(readlink -f ../../TEMPLATE)/../..}
staging=${data_dir}/.mini.staging

python3 local/mini.py \
    --data_dir "${data_dir}" \
    --staging_dir "${staging}" \
    --download_dir "${download_dir}" \
    --an4 "${espnet_root}/egs2/mini_an4/asr1/downloads.tar.gz" \
    --scale "${scale}" \
    --nj "${nj}"
local/publish_data.sh "${staging}" "${data_dir}" mini

log "Successfully finished. [elapsed=${SECONDS}s]"
