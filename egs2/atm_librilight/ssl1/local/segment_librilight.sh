#!/usr/bin/env bash
# Cuts the recordings of Libri-Light into segments of 32 to 64 seconds along their voice activity. No audio is written.
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
# Files, with commas between: speakers and books to leave out. SPEAKERS.TXT, CHAPTERS.TXT or
# lists; "librispeech" stands for those of LibriSpeech, if db.sh says where it is.
exclude=librispeech
min_seconds=32      # Of a segment.
max_seconds=64
max_pause=5         # Seconds without speech within a segment.
check_audio=true    # Look at every FLAC: is it there, whole, and as long as its JSON says?
valid_hours=10      # Held out for validation, by speaker; a tenth at most.

log "$0 $*"
. local/parse_options.sh

if [ $# -ne 0 ]; then
    log "Error: No positional arguments are required."
    exit 2
fi

. ./path.sh
. ./cmd.sh
. ./db.sh

exclusions=()
IFS=, read -r -a files <<< "${exclude}"
for file in ${files[@]+"${files[@]}"}; do
    if [ "${file}" != librispeech ]; then
        exclusions+=("${file}")
        continue
    fi
    known=${#exclusions[@]}
    for file in "${LIBRISPEECH:-}"/{,LibriSpeech/}{SPEAKERS,CHAPTERS}.TXT; do
        [ -z "${LIBRISPEECH:-}" ] || [ ! -s "${file}" ] || exclusions+=("${file}")
    done
    if [ "${#exclusions[@]}" -eq "${known}" ]; then
        log "Warning: the readers of LibriSpeech's dev and test sets are not left out: there is" \
            "no SPEAKERS.TXT or CHAPTERS.TXT in LIBRISPEECH, which is '${LIBRISPEECH:-}' in db.sh." \
            "Set it to the folder that holds LibriSpeech, or give --segment_opts '--exclude FILE'"
    fi
done
log "Leaving out the speakers and books of: ${exclusions[*]-nothing}"

dir=${data_dir}/local/librilight
recordings=${dir}/recordings
if [ ! -s "${recordings}" ]; then
    log "Error: no ${recordings}: run stage 1 (local/data.sh --corpus librilight) first"
    exit 1
fi
n=$(wc -l < "${recordings}")
nj=$((nj < n ? nj : n))
lists= parts=
for i in $(seq "${nj}"); do
    mkdir -p "${dir}/${nj}.${i}"
    lists+=" ${dir}/${nj}.${i}/recordings"
    parts+=" ${dir}/${nj}.${i}"
done
# shellcheck disable=SC2086
utils/split_scp.pl "${recordings}" ${lists}

log "Cutting ${n} recordings started... log: '${dir}/cut.*.log'"
${train_cmd} JOB=1:"${nj}" "${dir}"/cut.JOB.log \
    python3 local/librilight.py cut \
        --recordings "${dir}/${nj}.JOB/recordings" --output_dir "${dir}/${nj}.JOB" \
        --min_seconds "${min_seconds}" --max_seconds "${max_seconds}" \
        --max_pause "${max_pause}" --check_audio "${check_audio}" \
        --exclude ${exclusions[@]+"${exclusions[@]}"} || { tail -n 20 "${dir}"/cut.*.log; exit 1; }
# shellcheck disable=SC2086
python3 local/librilight.py merge --parts ${parts} --output_dir "${dir}/merged" \
    --valid_hours "${valid_hours}" > "${dir}/merge.log" || { cat "${dir}/merge.log"; exit 1; }

for set in train valid; do
    from=${dir}/merged/${set}
    staged=${from}/sorted
    mkdir -p "${staged}"
    for file in wav.scp segments utt2spk utt2book; do
        LC_ALL=C sort -S 64M "${from}/${file}" > "${staged}/${file}"
    done
    utils/utt2spk_to_spk2utt.pl "${staged}/utt2spk" > "${staged}/spk2utt"
    utils/validate_data_dir.sh --no-feats --no-text --non-print "${staged}" > "${from}/log" 2>&1 \
        || { cat "${from}/log"; exit 1; }
done
rm -rf "${data_dir}"/librilight_unlabelled{,_dev}
mv "${dir}/merged/valid/sorted" "${data_dir}/librilight_unlabelled_dev"
mv "${dir}/merged/train/sorted" "${data_dir}/librilight_unlabelled"

cat "${dir}/merge.log"
n=$(wc -l < "${dir}/merged/problems")
if [ "${n}" -gt 0 ]; then
    log "${n} problems, all in ${dir}/merged/problems:"
    head -n 10 "${dir}/merged/problems"
fi
log "Successfully finished. [elapsed=${SECONDS}s]"
