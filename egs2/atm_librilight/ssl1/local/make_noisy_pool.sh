#!/usr/bin/env bash
# Copy a data directory and mix pure noise in: recordings without speech, as a crawl has them.
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

share=0.1                     # Of the utterances of the new directory that are noise.
audio_dir=downloads/noise/v1  # Where the noise is written.

help_message=$(cat << EOM
Usage: $0 [--share X] [--audio_dir DIR] <data-dir> <noisy-data-dir>

The new directory's utt2category says which utterances are noise (purenoise).
EOM
)

. local/parse_options.sh
if [ $# -ne 2 ]; then
    log "${help_message}"
    exit 2
fi
from=$1
to=$2

. ./path.sh

[ -s "${from}/wav.scp" ] || { log "Error: ${from}/wav.scp is missing or empty" 1>&2; exit 1; }
[ "$(realpath -m "${to}")" != "$(realpath "${from}")" ] \
    || { log "Error: ${from} cannot be a copy of itself" 1>&2; exit 1; }
number='^([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][-+]?[0-9]+)?$'
{ [[ ${share} =~ ${number} ]] \
    && LC_ALL=C awk -v x="${share}" 'BEGIN {exit !(x > 0 && x < 1)}'; } \
    || { log "Error: --share ${share}: is no number between 0 and 1" 1>&2; exit 1; }
n=$(wc -l < "${from}/utt2spk")
n=$(LC_ALL=C awk -v x="${share}" -v n="${n}" 'BEGIN {printf "%d", n * x / (1 - x) + 0.5}')
[ "${n}" -gt 0 ] || { log "Error: --share ${share}: of ${from} is no utterance" 1>&2; exit 1; }

work=${to}.partial
trap 'rm -rf "${work}"' EXIT
rm -rf "${work}"
python3 local/make_noise.py --utterances "${n}" --audio_dir "${audio_dir}" "${work}/noise"
utils/copy_data_dir.sh --validate_opts "--non-print --no-text" "${from}" "${work}/speech"
if [ -e "${from}/utt2category" ]; then
    cp "${from}/utt2category" "${work}/speech"
else
    awk '{print $1 " speech"}' "${from}/utt2spk" > "${work}/speech/utt2category"
fi
[ ! -e "${work}/speech/segments" ] \
    || awk '{print $1, $1, 0, $2}' "${work}/noise/utt2dur" > "${work}/noise/segments"
utils/combine_data.sh --extra-files utt2category "${work}/all" \
    "${work}/speech" "${work}/noise" 1>&2
rm -rf "${to}" "${work}/all/.backup"
mv "${work}/all" "${to}"
log "${to}: $(wc -l < "${to}/utt2spk") utterances, ${n} of them noise"
