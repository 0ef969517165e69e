#!/usr/bin/env bash
# Validates the staged data directories of a corpus, moves them into place and prints their sizes.
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

if [ $# -ne 3 ]; then
    log "Usage: $0 <staging-dir> <data-dir> <corpus>"
    exit 2
fi
staging=$1
data_dir=$2
corpus=$3

# The python side writes .done last, and nothing at all when the corpus was complete already.
if [ -f "${staging}/.done" ]; then
    rm -f "${data_dir}/.${corpus}.done"
    for dir in "${staging}"/*/; do
        n=$(wc -l < "${dir}/utt2spk")
        utils/fix_data_dir.sh "${dir%/}" > "${staging}/.log" || { cat "${staging}/.log"; exit 1; }
        rm -rf "${dir}/.backup"
        if [ "$(wc -l < "${dir}/utt2spk")" -ne "${n}" ]; then
            cat "${staging}/.log"
            log "Error: fix_data_dir.sh dropped utterances of ${dir}"
            exit 1
        fi
        # --non-print: without a UTF-8 locale, letters beyond ASCII would count as non-printable.
        utils/validate_data_dir.sh --no-feats --non-print "${dir%/}" > "${staging}/.log" 2>&1 || { cat "${staging}/.log"; exit 1; }
    done
    for dir in "${staging}"/*/; do
        rm -rf "${data_dir:?}/$(basename "${dir}")"
        mv "${dir%/}" "${data_dir}/"
    done
    mv "${staging}/.done" "${data_dir}/.${corpus}.done"
    rm -r "${staging}"
else
    log "${corpus}: already prepared in ${data_dir}"
fi

python3 local/kaldi_data.py "${data_dir}" "${corpus}"
