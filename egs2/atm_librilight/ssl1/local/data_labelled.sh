#!/usr/bin/env bash
# The labelled corpora that db.sh names, through the data preparation of ESPnet's own recipes.
# They fill data/<set>_{train,dev} for fine-tuning, and the evaluation sets, whose names are left in <list>.
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}
SECONDS=0

data_dir=data
nj=2                # Processes that look at the audio.

log "$0 $*"
. local/parse_options.sh
if [ $# -ne 1 ]; then
    log "Usage: $0 [--data_dir DIR] [--nj N] <list of evaluation sets to write>"
    exit 2
fi
list=$1

. ./path.sh
. ./cmd.sh
. ./db.sh

espnet_root=${ATM_ESPNET_ROOT:-$(readlink -f ../../TEMPLATE)/../..}
recipe=${PWD}
data_dir=$(readlink -f "${data_dir}")
wsj1=$(realpath -m "${WSJ1:-}" 2> /dev/null || true)  # as seen from the recipe
work=${data_dir}/local/stock
usual_path=${PATH}

fail() {
    log "Error: $*" 1>&2
    exit 1
}

# enter NAME RECIPE PATH: a folder in which the stock recipe's local/ runs, with the corpus
# as corpus/: the stock scripts do not bear a path with spaces.
enter() {
    local name=$1 stock=${espnet_root}/egs2/$2 path=$3
    [ -d "${stock}/local" ] || fail "${name}: ${stock}/local is not there"
    [ -d "${path}" ] || fail "${name}: db.sh names ${path}, which is no directory"
    path=$(readlink -f "${path}")
    rm -rf "${work:?}/${name}"
    mkdir -p "${work}/${name}/bin"
    cd "${work}/${name}"
    ln -s "$(readlink -f "${stock}/local")" local
    ln -s "${path}" corpus
    local x
    for x in steps scripts pyscripts cmd.sh; do
        ln -s "$(readlink -f "${recipe}/${x}")" "${x}"
    done
    mkdir utils
    ln -s "$(readlink -f "${recipe}/utils")"/* utils
    if [ ! -e utils/make_absolute.sh ]; then  # Kaldi's, which ESPnet's CHiME-6 recipe calls
        printf '#!/bin/sh\nrealpath -s "$1"\n' > utils/make_absolute.sh
        chmod +x utils/make_absolute.sh
    fi
    echo ":" | tee path.sh > db.sh  # environment and path are there already
    : > test_sets
    # The stock scripts ask for programs that read audio, only to write them into pipes,
    # which read_directly takes out again.
    for x in flac ffmpeg sph2pipe sox; do
        ln -s "$(type -P false)" "bin/${x}"
    done
    # Not all of them look behind symbolic links.
    printf '#!/bin/sh\nexec %s -L "$@"\n' "$(type -P find)" > bin/find
    chmod +x bin/find
    export PATH=${PWD}/bin:${PATH}
}

# read_directly DIR: take the programs out of wav.scp; ESPnet reads FLAC, WAV, SPHERE and MP3,
# and local/sphere.py the SPHERE that it does not.
read_directly() {
    sed -i -E \
        -e 's: sox -c 1 -t wavpcm -e signed-integer (.*) -t wavpcm - \|$: \1:' \
        -e 's: ffmpeg -i (.*) -f wav -ar 16000 -ab 16 -ac 1 - \|$: \1:' "$1/wav.scp"
    PATH=${usual_path} python3 "${recipe}/local/sphere.py" direct "$1/wav.scp"
    local pipe
    pipe=$(grep '|$' "$1/wav.scp" | grep -vE ' (python3 \S+/sphere.py|sph2pipe) ' | head -n 1 || true)
    [ -z "${pipe}" ] || fail "$1/wav.scp has a pipe: ${pipe}"
}

# publish DIR SET: put a directory of the stock recipe into data/, its text normalised.
publish() {
    local staged=${work}/staged/$2
    rm -rf "${staged}"
    mkdir -p "${work}/staged"
    read_directly "$1"
    utils/copy_data_dir.sh --validate_opts "--non-print" "$1" "${staged}"
    rm -f "${staged}"/{stm,glm,utt2spk_stm,spk2gender,utt2gender,reco2file_and_channel}
    python3 "${recipe}/local/normalise_text.py" < "$1/text" > "${staged}/text"
    utils/fix_data_dir.sh "${staged}"
    rm -rf "${staged}/.backup"
    [ -s "${staged}/text" ] || fail "$2: no utterance is left"
    # As many as ESPnet's script found: an evaluation set without some is another set.
    python3 "${recipe}/local/check_data.py" --nj "${nj}" --labelled "${staged}"
    rm -rf "${data_dir:?}/$2"
    mv "${staged}" "${data_dir}/$2"
    log "$2: $(wc -l < "${data_dir}/$2/text") of $(wc -l < "$1/text") utterances"
}
evaluate() {
    publish "$1" "$2"
    echo "$2" >> test_sets
}

librispeech() {
    local root=corpus part
    [ ! -d corpus/LibriSpeech ] || root=corpus/LibriSpeech
    for part in dev-clean dev-other test-clean test-other train-clean-100 train-clean-360 \
        train-other-500; do
        if [ -d "${root}/${part}" ]; then
            local/data_prep.sh "${PWD}/${root}/${part}" "data/${part//-/_}"
        elif [[ ${part} = train-*60 || ${part} = train-other-* ]]; then
            log "LibriSpeech: no ${part}: librispeech_960 is not made"
        else
            fail "LibriSpeech: ${LIBRISPEECH} has no ${part}"
        fi
    done
    utils/combine_data.sh data/dev data/dev_clean data/dev_other
    publish data/train_clean_100 librispeech_100_train
    publish data/dev librispeech_100_dev
    if [ -d data/train_clean_360 ] && [ -d data/train_other_500 ]; then
        utils/combine_data.sh data/train_960 data/train_{clean_100,clean_360,other_500}
        publish data/train_960 librispeech_960_train
        publish data/dev librispeech_960_dev
    fi
    for part in dev_clean dev_other test_clean test_other; do
        evaluate "data/${part}" "librispeech_${part}"
    done
}

# The stock recipe calls a whole meeting a speaker for the distant microphone, and then the
# sets of two microphones cannot be sorted together.
ami_speakers() {
    awk '{speaker = $1; sub(/_[0-9]+_[0-9]+$/, "", speaker); print $1, speaker}' \
        "$1/text" > "$1/utt2spk"
    utils/utt2spk_to_spk2utt.pl "$1/utt2spk" > "$1/spk2utt"
}
ami() {
    local root=corpus annotations= mic dset dir
    # As seen from the recipe, like all paths of db.sh.
    [ -z "${AMI_ANNOTATIONS:-}" ] || annotations=$(cd "${recipe}" && realpath -m "${AMI_ANNOTATIONS}")
    [ ! -d corpus/amicorpus ] || root=corpus/amicorpus
    for dir in corpus/annotations \
        $(compgen -G 'corpus/ami_public_manual_*' | sort -rV) corpus; do
        [ -n "${annotations}" ] || [ ! -d "${dir}/words" ] || annotations=${dir}
    done
    [ -d "${annotations}/words" ] \
        || fail "AMI: no words/ with NXT XML in ${annotations:-${AMI}/annotations}:" \
        "unzip ami_public_manual_1.6.2.zip there, or set AMI_ANNOTATIONS in db.sh"
    mkdir -p data/local/{annotations,downloads}
    python3 "${recipe}/local/ami.py" transcripts --annotations "${annotations}" \
        --amicorpus "${root}/" data/local/annotations/transcripts1
    local/ami_split_segments.pl data/local/annotations/transcripts{1,2} \
        > data/local/annotations/split_segments.log 2>&1
    for mic in ihm sdm1; do
        for dset in train dev eval; do
            grep -f "local/split_${dset}.orig" data/local/annotations/transcripts2 \
                > "data/local/annotations/${dset}.all" || true
            python3 "${recipe}/local/ami.py" select --amicorpus "${root}/" --mic "${mic}" \
                "data/local/annotations/${dset}".{all,txt}
            if [ ! -s "data/local/annotations/${dset}.txt" ]; then
                log "AMI: no ${dset} utterance with audio for ${mic}: ami_${mic}_${dset} is not made"
            elif [ "${dset}" = train ]; then
                "local/ami_${mic//[0-9]/}_data_prep.sh" "${PWD}/${root}/" "${mic}"
                ami_speakers "data/${mic}/train_orig"
                publish "data/${mic}/train_orig" "ami_${mic}_train"
            else
                "local/ami_${mic//[0-9]/}_scoring_data_prep.sh" "${PWD}/${root}/" "${mic}" "${dset}"
                ami_speakers "data/${mic}/${dset}_orig"
                publish "data/${mic}/${dset}_orig" "ami_${mic}_${dset}"
                [ "${dset}" = dev ] || echo "ami_${mic}_eval" >> test_sets
            fi
        done
    done
}

tedlium2() {
    # prepare_data.sh goes over dev, test and train, in this order.
    local dset train="${PWD}/corpus/TEDLIUM_release2/train"
    mkdir -p data
    if [ -d "${train}" ]; then
        local/prepare_data.sh "${PWD}/corpus"
    else
        log "TED-LIUM: no TEDLIUM_release2/train: tedlium2_train is not made"
        local/prepare_data.sh "${PWD}/corpus" || [ -s data/test.orig/segments ] \
            || fail "TED-LIUM: ${TEDLIUM2}/TEDLIUM_release2 has no dev and test"
    fi
    for dset in train dev test; do
        [ "${dset}" != train ] || [ -d "${train}" ] || continue
        utils/data/modify_speaker_info.sh --seconds-per-spk-max 180 "data/${dset}.orig" \
            "data/${dset}"
        publish "data/${dset}" "tedlium2_${dset}"
        [ "${dset}" = train ] || echo "tedlium2_${dset}" >> test_sets
    done
}

# commonvoice_list DIR PART: release/PART.tsv, which the stock script reads. It takes the third
# column for the sentence: since release 17, it is not.
commonvoice_list() {
    awk -F '\t' -v OFS='\t' '
        NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i
                  if (!(at["client_id"] && at["path"] && at["sentence"])) exit 1 }
        { print $at["client_id"], $at["path"], $at["sentence"] }
    ' "$1/$2.tsv" > "release/$2.tsv" || fail "Common Voice: $1/$2.tsv lacks one of the columns" \
        "client_id, path and sentence; it has: $(head -n 1 "$1/$2.tsv")"
    # The stock script leaves out what is empty, of which releases have some; an evaluation set
    # without them is another set.
    local bad empty=0
    bad=$(tail -n +2 "release/$2.tsv" | cut -f 2 | while IFS= read -r clip; do
        [ -s "release/clips/${clip}" ] || echo "${clip}"
    done)
    if [ "$2" = validated ] && [ -n "${bad}" ]; then
        empty=$(wc -l <<< "${bad}")
        bad=$(while IFS= read -r clip; do
            [ -e "release/clips/${clip}" ] || echo "${clip}"
        done <<< "${bad}")
        [ -n "${bad}" ] || log "Common Voice: ${empty} clips of $1/$2.tsv are empty and left out"
    fi
    [ -z "${bad}" ] || fail "Common Voice: $(wc -l <<< "${bad}") clips of $1/$2.tsv are missing" \
        "or empty, the first: clips/${bad%%$'\n'*}"
}
commonvoice() {
    local dir part
    # Of several releases the newest, which is not the last in the alphabet.
    dir=$(find -L corpus -maxdepth 3 -path '*en/test.tsv' | sort -V | tail -n 1)
    [ -n "${dir}" ] || fail "Common Voice: no en/test.tsv in ${COMMONVOICE}"
    log "Common Voice: ${dir} is taken"
    dir=${dir%/*}
    mkdir -p data release
    ln -s "${PWD}/${dir}/clips" release/clips
    for part in test dev validated; do
        if [ ! -e "${dir}/${part}.tsv" ]; then
            log "Common Voice: no ${part}.tsv: commonvoice_{train,dev} is not made"
            break
        fi
        commonvoice_list "${dir}" "${part}"
        local/data_prep.pl "${PWD}/release" "${part}" "data/${part}_en"
    done
    if [ -d data/validated_en ]; then
        # The stock recipe takes what is validated less the clips of dev and test; their
        # speakers have said more.
        sort -u data/{dev,test}_en/spk2utt | cut -d ' ' -f 1 > data/held_out
        utils/filter_scp.pl --exclude data/held_out data/validated_en/spk2utt \
            | cut -d ' ' -f 1 > data/speakers
        utils/subset_data_dir.sh --spk-list data/speakers data/validated_en data/train_en
        publish data/train_en commonvoice_train
        publish data/dev_en commonvoice_dev
    fi
    evaluate data/test_en commonvoice_test
}

wsj() {
    local disk disks=() part dir dset all bare
    [ -n "${WSJ1:-}" ] || fail "WSJ: db.sh names WSJ0 and not WSJ1"
    [ -d "${wsj1}" ] || fail "WSJ: db.sh names ${WSJ1}, which is no directory"
    ln -s "${wsj1}" corpus1
    for disk in corpus/??-{?,??}.? corpus1/??-{?,??}.?; do
        # Both may be in one folder.
        [ ! -d "${disk}" ] || [[ " ${disks[*]} " = *"/${disk##*/} "* ]] || disks+=("${PWD}/${disk}")
    done
    for disk in 11-2.1 11-13.1 13-32.1 13-34.1; do
        [[ " ${disks[*]} " = *"/${disk} "* ]] \
            || fail "WSJ: no folder ${disk} in ${WSJ0} and ${WSJ1}, which hold the discs by number"
    done
    # The stock script would fetch a list of genders, of so many lines, which has no use here.
    mkdir -p data/local/data
    printf ';%.0s\n' {1..134} > data/local/data/wsj0-train-spkrinfo.txt
    local/wsj_data_prep.sh "${disks[@]}"
    local/wsj_format_data.sh
    # A speaker's three letters may begin the id of a Common Voice speaker, and then the two
    # cannot be sorted together: hence the prefix. Marks inside of words are of punctuation that
    # is read aloud, of sounds drawn out, and of what is left unsaid of a broken word.
    for part in train_si284:train dev93:dev eval92:eval92 eval93:eval93; do
        dir=data/${part%:*} dset=wsj_${part#*:}
        [ -d "${dir}" ] || dir=data/test_${part%:*}
        all=$(wc -l < "${dir}/wav.scp")
        bare=$((all - $(wc -l < "${dir}/text")))
        # One in a hundred of training; an evaluation set without some is another set.
        [ "${bare}" -eq 0 ] || { [ "${dset}" = wsj_train ] && [ $((100 * bare)) -le "${all}" ]; } \
            || fail "WSJ: ${bare} of the ${all} utterances of ${dir##*/} have no transcript: their" \
            ".dot files are not on the discs"
        [ "${bare}" -eq 0 ] || log "WSJ: ${bare} utterances without transcript are left out"
        rm -f "${dir}/spk2gender"
        sed -i -E "s/[{}:]//g; s/([A-Z'])\([A-Z']*\)/\1/g" "${dir}/text"
        utils/copy_data_dir.sh --validate_opts "--non-print" --spk-prefix wsj_ --utt-prefix wsj_ \
            "${dir}" "data/${dset}"
        publish "data/${dset}" "${dset}"
        [[ ${dset} != *_eval* ]] || echo "${dset}" >> test_sets
    done
}

# plain_words DIR: what swbd/asr1/local/data.sh does to transcripts: acronyms without points.
plain_words() { sed -i 's/\._/ /g; s/\.//g; s/them_1/them/g' "$1/text"; }
swbd() {
    local root=${PWD}/corpus dev fisher=() dir
    [ -d "${root}/LDC97S62" ] || fail "Switchboard: ${SWBD} has no LDC97S62"
    # The stock script would fetch them.
    [ -s "${root}/LDC97S62/transcriptions/swb_ms98_transcriptions/sw-ms98-dict.text" ] \
        || fail "Switchboard: no LDC97S62/transcriptions/swb_ms98_transcriptions/sw-ms98-dict.text:" \
        "unpack www.openslr.org/resources/5/switchboard_word_alignments.tar.gz there"
    local/swbd1_data_download.sh "${root}/LDC97S62"
    local/swbd1_prepare_dict.sh
    local/swbd1_data_prep.sh "${root}/LDC97S62"
    plain_words data/train
    # The stock recipe validates on the first 4000 utterances; here on the first conversations
    # with as many, so that nobody is on both sides of one.
    awk -v all="$(wc -l < data/train/utt2spk)" '
        {talk = substr($1, 1, 7)}
        talk != last && n >= (all < 40000 ? all / 10 : 4000) {exit}
        {last = talk; n++; print $1}
    ' data/train/utt2spk > data/dev_utts
    utils/filter_scp.pl --exclude data/dev_utts data/train/utt2spk > data/train_utts
    utils/subset_data_dir.sh --utt-list data/dev_utts data/train data/train_dev
    utils/subset_data_dir.sh --utt-list data/train_utts data/train data/train_nodev
    utils/data/remove_dup_utts.sh 300 data/train_nodev data/train_nodup
    publish data/train_nodup swbd_train
    publish data/train_dev swbd_dev
    for dir in "${root}"/LDC200{4,5}[TS]{13,19}; do
        [ ! -d "${dir}" ] || fisher+=("${dir}")
    done
    if [ "${#fisher[@]}" -gt 0 ]; then
        local/fisher_data_prep.sh "${fisher[@]}"
        plain_words data/train_fisher
        rm -f data/train_fisher/spk2gender  # who is not in it would be left out
        utils/fix_data_dir.sh data/train_fisher
        utils/combine_data.sh data/swbd_fisher data/train_nodup data/train_fisher
        publish data/swbd_fisher swbd_fisher_train
        publish data/train_dev swbd_fisher_dev
    else
        log "Fisher: no LDC2004T19, LDC2005T19, LDC2004S13 and LDC2005S13: swbd_fisher_train is not made"
    fi
    if [ -d "${root}/LDC2002S09" ]; then
        local/eval2000_data_prep.sh "${root}/LDC2002S09/hub5e_00" "${root}/LDC2002T43"
        # What is in parentheses may be left out; hesitations are no words.
        sed -i -E 's/\(%[^)]*\)//g' data/eval2000/text
        evaluate data/eval2000 swbd_eval2000
    else
        log "Switchboard: no LDC2002S09: swbd_eval2000 is not made"
    fi
}

chime6() {
    # The first array's first channel: the others of an utterance are the same speech.
    for dset in dev eval; do
        [ -d "corpus/audio/${dset}" ] || fail "CHiME-6: ${CHIME6} has no audio/${dset}"
        # The stock script leaves out sessions without audio.
        for json in corpus/transcriptions/"${dset}"/S*.json; do
            json=${json##*/}
            [ -e "corpus/audio/${dset}/${json%.json}_U01.CH1.wav" ] \
                || fail "CHiME-6: ${CHIME6}/audio/${dset}/${json%.json}_U01.CH1.wav is not there"
        done
        local/prepare_data.sh --mictype u01 "${PWD}/corpus/audio/${dset}" \
            "${PWD}/corpus/transcriptions/${dset}" "data/${dset}_u01"
        grep '\.CH1-' "data/${dset}_u01/utt2spk" > "data/${dset}_u01/first"
        utils/subset_data_dir.sh --utt-list "data/${dset}_u01/first" "data/${dset}_u01" \
            "data/${dset}"
        evaluate "data/${dset}" "chime6_${dset}"
    done
}

: > "${list}.partial"
made= unset_= failed=
for corpus in librispeech:LIBRISPEECH:librispeech/asr1 ami:AMI:ami/asr1 \
    tedlium2:TEDLIUM2:tedlium2/asr1 commonvoice:COMMONVOICE:commonvoice/asr1 \
    wsj:WSJ0:wsj/asr1 swbd:SWBD:swbd/asr1 chime6:CHIME6:chime6/asr1; do
    IFS=: read -r name variable stock <<< "${corpus}"
    path=${!variable:-}
    if [ -z "${path}" ]; then
        unset_+=" ${variable}"
        continue
    fi
    log "${name}: preparing ${path}; log: ${work}/${name}.log"
    mkdir -p "${work}"
    # In a process of its own: what goes wrong in one corpus does not stop the others.
    set +e
    (
        set -e
        enter "${name}" "${stock}" "${path}"
        "${name}"
    ) > "${work}/${name}.log" 2>&1
    code=$?
    set -e
    grep -E '^AMI: |: [^ ]+ is taken$|: [0-9]+ of [0-9]+ utterances|: no .* is not made|left out$|^Warning: expected' \
        "${work}/${name}.log" || true
    if [ "${code}" -eq 0 ]; then
        made+=" ${name}"
        cat "${work}/${name}/test_sets" >> "${list}.partial"
    else
        failed+=" ${name}"
        log "Error: ${name} could not be prepared from ${path}:"
        tail -n 5 "${work}/${name}.log"
    fi
done
mv "${list}.partial" "${list}"
log "Labelled corpora: $(wc -w <<< "${made}") prepared (${made:- none}), $(wc -w <<< "${failed}")" \
    "failed (${failed:- none}), $(wc -w <<< "${unset_}") not set in db.sh (${unset_:- none})"
