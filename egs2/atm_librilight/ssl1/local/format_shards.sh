#!/usr/bin/env bash
# ESPnet's format_wav_scp.sh in shards, each done once: a kill loses the one at work.
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

segments=          # As format_wav_scp.sh.
nj=2               # The number of parallel jobs.
cmd=run.pl
audio_format=flac
fs=16k
without_bad=false  # Go on without what cannot be read: it is in <dir>/lost then.
# Of audio, for each job: 5 minutes where it is resampled, a quarter of one where it is not.
hours=10

. local/parse_options.sh

if [ $# -ne 2 ]; then
    log "Usage: $0 [options] <wav.scp> <dir>"
    exit 2
fi
wav_scp=$1
dir=$2

. ./path.sh

table=${segments:-${wav_scp}}
shards=${dir}/shards
mkdir -p "${shards}"
total=$(grep -c '' "${table}")  # also a last line without an end

# format_shard: shard n, which is the lines of ${own}/list.
format_shard() {
    local opts=() scp=${own}/list
    [ -z "${segments}" ] || opts=(--segments "${own}/list") scp=${wav_scp}
    scripts/audio/format_wav_scp.sh --nj "${nj}" --cmd "${cmd}" --audio-format "${audio_format}" \
        --fs "${fs}" ${opts[@]+"${opts[@]}"} "${scp}" "${own}" "${logs}" "${audio}" \
        > "${own}/log" 2>&1
}
# find_bad: what of shard n cannot be read, into ${own}/bad; by lists of format_wav_scp.sh.
find_bad() {
    local jobs list=${logs}/wav.JOB.scp i
    [ -z "${segments}" ] || list=${logs}/segments.JOB
    jobs=$((nj < lines ? nj : lines))
    ${cmd} JOB=1:"${jobs}" "${logs}/check.JOB.log" \
        python3 local/shards.py check ${segments:+--wav_scp "${wav_scp}"} \
            "${list}" "${logs}/bad.JOB" \
        || { cat "${own}/log"; tail -n 3 "${logs}"/check.*.log; exit 1; } 1>&2
    for i in $(seq "${jobs}"); do
        cat "${logs}/bad.${i}"
    done > "${own}/bad"
}
# too_bad FILE N: end, with what is in FILE, of N utterances.
too_bad() {
    head -n 10 "$1" 1>&2
    log "Error: $(wc -l < "$1") of $2 utterances of ${table} cannot be read, the first:" \
        "$(head -n 1 "$1"); all are in $1: mend them, or take them out" 1>&2
    exit 1
}

n=0 taken=0
while [ "${taken}" -lt "${total}" ]; do
    n=$((n + 1))
    own=${shards}/${n}
    # What a shard consists of stays, whatever the options of the next run.
    [ -s "${own}.list" ] || python3 local/shards.py next --skip "${taken}" --jobs "${nj}" \
        --hours "${hours}" ${segments:+--wav_scp "${wav_scp}"} "${table}" "${own}.list"
    lines=$(wc -l < "${own}.list")
    taken=$((taken + lines))
    [ ! -e "${own}.done" ] || continue
    rm -rf "${own}"
    mkdir -p "${own}"
    logs=${own}/logs audio=${own}/data
    if [ "${lines}" -eq "${total}" ]; then  # as without shards
        logs=${dir}/logs audio=${dir}/data
    fi
    cp "${own}.list" "${own}/list"
    : > "${own}/bad"
    if ! format_shard; then
        find_bad
        bad=$(wc -l < "${own}/bad")
        [ "${bad}" -gt 0 ] || { cat "${own}/log" 1>&2; exit 1; }
        "${without_bad}" || too_bad "${own}/bad" "${lines}"
        utils/filter_scp.pl --exclude "${own}/bad" "${own}.list" > "${own}/list"
        if [ ! -s "${own}/list" ]; then
            : | tee "${own}/wav.scp" > "${own}/utt2num_samples"
        elif ! format_shard; then
            cat "${own}/log" 1>&2
            exit 1
        fi
    fi
    : > "${own}.done"
    [ "${lines}" -eq "${total}" ] || log "${table}: ${taken} of ${total} done"
done

for file in wav.scp utt2num_samples bad; do
    for i in $(seq "${n}"); do
        cat "${shards}/${i}/${file}"
    done > "${dir}/${file}.partial"
done
# Whoever calls this again has mended them, perhaps.
for i in $(seq "${n}"); do
    [ ! -s "${shards}/${i}/bad" ] || rm -f "${shards}/${i}.done"
done
mv "${dir}/bad.partial" "${dir}/lost"
# More than half: that is no damage.
[ $((2 * $(wc -l < "${dir}/lost"))) -le "${total}" ] || too_bad "${dir}/lost" "${total}"
for file in wav.scp utt2num_samples; do
    mv "${dir}/${file}.partial" "${dir}/${file}"
done
