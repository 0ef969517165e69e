#!/usr/bin/env bash
# Make a data directory of the utterances whose mean confidence is high enough.
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

min_confidence=  # In [0, 1].

help_message=$(cat << EOM
Usage: $0 --min_confidence X <utt2confidence> <data-dir> <subset-dir>

utt2confidence is what espnet_atm.bin.score writes. Utterances of the data directory that
are not in it, because they could not be scored, are left out too.
EOM
)

. local/parse_options.sh
if [ $# -ne 3 ]; then
    log "${help_message}"
    exit 2
fi
means=$1
dir=$2
subset=$3

for file in "${means}" "${dir}/utt2spk"; do
    [ -s "${file}" ] || { log "Error: ${file} is missing or empty" 1>&2; exit 1; }
done
if [ "$(realpath -m "${subset}")" = "$(realpath "${dir}")" ]; then
    log "Error: ${dir} cannot be its own subset" 1>&2
    exit 1
fi
number='^([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][-+]?[0-9]+)?$'
{ [[ ${min_confidence} =~ ${number} ]] \
    && LC_ALL=C awk -v x="${min_confidence}" 'BEGIN {exit !(x >= 0 && x <= 1)}'; } \
    || { log "Error: --min_confidence ${min_confidence}: is no number in [0, 1]" 1>&2; exit 1; }
LC_ALL=C awk -v number="${number}" -v file="${means}" '
    NF != 2 || $2 !~ number || $2 > 1 || $1 in seen {
        printf "Error: %s:%d: %s is no id that is new with a mean in [0, 1]\n", file, NR, $0
        exit 1
    }
    { seen[$1] }
' "${means}" 1>&2
mkdir -p "${subset}"
LC_ALL=C awk -v least="${min_confidence}" '
    NR == FNR { confidence[$1] = $2; next }
    ($1 in confidence) && confidence[$1] >= least { print $1 }
' "${means}" "${dir}/utt2spk" > "${subset}/.utterances"
all=$(wc -l < "${dir}/utt2spk")
kept=$(wc -l < "${subset}/.utterances")
scored=$(utils/filter_scp.pl "${means}" "${dir}/utt2spk" | wc -l)
log "${dir}: ${kept} of ${all} utterances kept in ${subset}; $((scored - kept)) have a mean" \
    "confidence below ${min_confidence}, $((all - scored)) have no confidence in ${means}"
if [ "${kept}" -eq 0 ]; then
    log "Error: nothing is left of ${dir}" 1>&2
    exit 1
fi
utils/subset_data_dir.sh --utt-list "${subset}/.utterances" "${dir}" "${subset}"
rm "${subset}/.utterances"
# What a dumped directory holds besides, which Kaldi does not know.
for file in feats_type audio_format; do
    [ ! -e "${dir}/${file}" ] || cp "${dir}/${file}" "${subset}"
done
for file in utt2num_samples utt2category; do
    [ ! -e "${dir}/${file}" ] \
        || utils/filter_scp.pl "${subset}/utt2spk" "${dir}/${file}" > "${subset}/${file}"
done
