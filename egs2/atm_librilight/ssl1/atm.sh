#!/usr/bin/env bash
# Ask2Mask, from data to a fine-tuned and evaluated model.
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}
die() {
    log "Error: $*" 1>&2
    exit 1
}
SECONDS=0

# General configuration
stage=1               # Processes starts from the specified stage.
stop_stage=12         # Processes is stopped at the specified stage.
skip_data_prep=false  # Skip stage 1: the data directories are there already.
skip_packing=true     # Skip stage 13.
skip_upload_hf=true   # Skip stage 14.
hf_repo=              # Where stage 14 uploads to.
ngpu=0                # The number of gpus ("0" uses cpu, otherwise use gpu).
seed=                 # Of pre-training and of fine-tuning (default: the configs', or 0).
num_nodes=1           # The number of nodes of pre-training.
nj=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)  # The number of parallel jobs.
dumpdir=              # Directory to dump features (default: dump/<corpus>).
expdir=               # Directory to save experiments (default: exp/<corpus>).
python="python3 -m espnet_atm"  # Runs the SSL task; see espnet_atm/__main__.py.
fs=16k                # Sampling rate.
audio_format=flac     # Of the dumped audio.
write_segments=false  # Write the pool's segments as files, not as cuts into the recordings.
min_wav_duration=0.3  # Minimum duration in second.
max_wav_duration=40   # Maximum duration in second.

# Data
corpus=mini           # local/data_<corpus>.sh makes the sets.
size=                 # Part of the corpus, where it has parts: of librilight, small,
                      # medium, large or all.
local_data_opts=      # The options given to local/data.sh.
segment_opts=         # The options given to local/segment_<corpus>.sh.
train_set=            # Unlabelled pool.
valid_set=            # Held-out part of it.
asr_train_set=        # Labelled: trains the scorer, fine-tunes the model.
asr_valid_set=        # Labelled.
finetune_sets=        # Fine-tune on <set>_train and <set>_dev of each of these instead;
                      # a+b is both together.
test_sets=            # Labelled.
token_type=char       # Of the ASR models: char or bpe.
nbpe=1024             # Number of word pieces.

# Scorer
scorer_config=        # config.yaml of an ESPnet ASR model with CTC; trained here if empty.
scorer_model=         # Its .pth.
scorer_tag=           # Or any model with CTC, ESPnet's or Hugging Face's: a tag, folder or packed file.
scorer_lang=          # Of OWSM-CTC (unknown if empty) and of the adapters of MMS, e.g. eng.
scorer_task=          # Of OWSM-CTC (asr if empty).
scorer_train_config=  # ASR config of a scorer that is trained here (default: asr_config).
scorer_name=          # Of a further scorer beside another of the same corpus, e.g. ami.
score_opts=           # Options of espnet_atm.bin.score, e.g. "--measure entropy".
speech_gate=false     # Scores times the probability, by silero-vad, that a frame is speech.
max_skipped=0         # Go on without so many utterances of a set that cannot be scored.
min_confidence=       # Pre-train on utterances with at least this mean confidence.

# Pre-training
objective=            # hubert, wav2vec2, w2v_bert or best_rq (default: hubert).
model_size=           # mini, l or xl (default: mini).
masker=               # atm or random (default: atm).
train_config=         # Default: conf/train.yaml; with --objective or --model_size,
                      # conf/tuning/train_<objective>_conformer_<size>_<masker>.yaml.
init=                 # Go on from this wav2vec 2.0 or HuBERT of Hugging Face's: folder or tag.
mask_ratio=           # Fraction of frames masked (default: the paper's for the masker),
                      # exceeded by less than a span.
exact=                # true: not exceeded, the last span is cut (default: false).
span=                 # Encoded frames (default: the paper's).
strategy=             # high, low, mixed, random, topk or shuffled (default: the paper's).
sharpness=            # Exponent on the confidence that masks are drawn by (default: 1).
validation_masker=    # Of validation, without weights, so that runs with other masks compare:
                      # e.g. "strategy=random mask_ratio=0.49 span=10" (default: as training).
loss_scale=           # none, utterance or frame (default: none).
frame_prob=           # Of loss_scale frame: the part of utterances (default: 0.1).
nclusters=            # Of HuBERT's pseudo-labels (default: num_classes of the config).
km_portion=0.5        # The part of the utterances that they are learned from.
km_model=             # Of a layer of this model, a run of pre-training or its .pth, not of MFCC.
km_layer=             # Which, from 1.
ssl_max_epoch=        # Instead of the config's.
num_splits_ssl=1      # Parts that an epoch goes through one after the other, as in ssl.sh.
ssl_args=             # Further arguments of ssl_train.
# The last epoch's: the targets of some objectives move, and a collapsed codebook has the
# lowest loss of all.
inference_ssl_model=latest.pth

# Fine-tuning and evaluation
asr_config=conf/train_asr.yaml   # Of the scorer and of fine-tuning.
asr_max_epoch=                   # Instead of the config's.
asr_args=                        # Further arguments of asr_train.
head_epochs=0                    # Epochs of fine-tuning with the encoder frozen, so that
                                 # only the new output layer learns. Within max_epoch.
head_args="--optim_conf lr=0.01 --scheduler none"  # Their arguments of asr_train.
inference_config=                # Default: conf/decode_ctc.yaml, or decode_rnnt.yaml.
inference_asr_model=valid.loss.best.pth

help_message=$(cat << EOF
Usage: $0 [--stage N] [--stop_stage N] [options]
With --stop_stage 0 only the options are looked at.

Stages:
    1   data preparation            7   confidence report
    2   segments of long recordings 8   k-means pseudo-labels (hubert)
    3   format wav.scp, or cut      9   lengths of the utterances
    4   drop too long or short      10  pre-train
    5   scorer                      11  export; fine-tune
    6   score the unlabelled sets   12  decode, score, RESULTS.md
                                    13  pack, 14 upload (only when not skipped)

Options:
    --corpus           # local/data_<corpus>.sh makes the data (default="${corpus}").
    --size             # Part of the corpus: of librilight, small, medium, large or all.
    --skip_data_prep   # Use the data directories in data/ as they are (default="${skip_data_prep}").
    --train_set        # Unlabelled pool (default: <corpus>_unlabelled).
    --valid_set        # Held-out part of it (default: <corpus>_unlabelled_dev).
    --asr_train_set    # Labelled training set (default: <corpus>_train).
    --asr_valid_set    # Labelled validation set (default: <corpus>_dev).
    --finetune_sets    # Fine-tune on <set>_train, validated on <set>_dev, of each of these,
                       # e.g. "librispeech_100 ami_ihm+ami_sdm1" (default: on the
                       # labelled training set). The first trains the scorer.
    --test_sets        # Labelled test sets (default: those that stage 1 made).
    --objective        # hubert, wav2vec2, w2v_bert or best_rq (default: hubert).
    --model_size       # mini, l (100 M parameters) or xl (600 M) (default: mini).
    --masker           # atm or random (default: atm).
    --train_config     # SSL config (default: conf/train.yaml, or the one that --objective
                       # and --model_size name in conf/tuning).
    --init             # Go on from this wav2vec 2.0 or HuBERT of Hugging Face's, a folder or a
                       # tag, with the model's own loss. What no model says is taken from
                       # --train_config (default: conf/train_init.yaml).
    --mask_ratio       # Fraction of frames masked (default: 0.40 for atm, 0.49 for random).
                       # Met in each utterance and exceeded by less than a span, so that
                       # short utterances have noticeably more masked.
    --exact            # true: it is not exceeded, the last span is cut (default: false).
    --span             # Encoded frames (default: 10).
    --strategy         # high, low, mixed, random, topk, or shuffled, the control (default:
                       # high for atm).
    --sharpness        # Exponent on the confidence that masks are drawn by (default: 1).
    --validation_masker  # Masks of validation, without weights, so that runs with other masks
                       # compare, e.g. "strategy=random mask_ratio=0.49 span=10" (default: as
                       # training).
    --loss_scale       # none, utterance or frame (default: none).
    --frame_prob       # With --loss_scale frame: the part of utterances (default: 0.1).
    --scorer_config    # config.yaml of an ESPnet ASR model with CTC, instead of training one.
    --scorer_model     # Its .pth.
    --scorer_tag       # Or any model with CTC: the tag of an ESPnet or Hugging Face model, or
                       # the folder or packed file that holds it.
    --scorer_lang, --scorer_task  # Of OWSM-CTC (default: unknown, asr), and lang of MMS's adapters.
    --scorer_train_config  # ASR config of the scorer (default: that of --asr_config).
    --scorer_name      # Names a further scorer, and the runs that use it, e.g. ami.
    --score_opts       # Options of espnet_atm.bin.score (default="${score_opts}").
    --speech_gate      # true: scores times the probability, by silero-vad, that a frame is
                       # speech (default="${speech_gate}", as in the paper).
    --max_skipped      # Go on without utterances that cannot be scored, if a set has no more
                       # of them than this (default="${max_skipped}").
    --min_confidence   # Pre-train only on utterances with at least this mean confidence,
                       # in [0, 1] (default: on all).
    --asr_config       # ASR config (default="${asr_config}"); fine-tuning takes the
                       # front end and the encoder from pre-training.
    --ssl_max_epoch, --asr_max_epoch  # Instead of the configs' max_epoch. More epochs of a run
                       # go on from a copy of it.
    --seed             # Of pre-training and fine-tuning; the scorer's stays (default: 0).
    --num_splits_ssl   # Go through the pool in so many parts, one after the other in an epoch
                       # (default="${num_splits_ssl}").
    --ssl_args, --asr_args            # Further arguments of training.
    --head_epochs      # Epochs of fine-tuning, among the first, in which the encoder is
                       # frozen and only the output layer learns (default="${head_epochs}").
    --nclusters        # Of HuBERT's pseudo-labels (default: num_classes of the config).
    --km_portion       # Learn them from this part of the utterances (default="${km_portion}").
    --km_model, --km_layer  # Learn them from a layer of a pre-trained model, as HuBERT's second
                       # iteration: folder or .pth of a run, and the layer from 1 (default: MFCC).
    --write_segments   # true: write the pool's segments as files of their own, e.g. for a slow
                       # network disk, not as cuts into the recordings (default: false).
                       # Segments over damage in a recording are left out, and named; as
                       # cuts, stage 6 names them.
    --nj               # Jobs at a time (default: ${nj}, the cores there are).
    --ngpu, --num_nodes, --dumpdir, --expdir, --token_type, --nbpe, --fs  # As in ESPnet.
EOF
)

# What a run is named by, where it differs from the defaults and the corpus's settings.
declare -A defaults
keep_defaults() {
    local name
    for name in train_set valid_set asr_train_set asr_valid_set finetune_sets token_type nbpe \
        asr_config scorer_train_config km_portion ssl_max_epoch ssl_args asr_max_epoch asr_args \
        head_epochs head_args inference_ssl_model inference_config inference_asr_model; do
        defaults[${name}]=${!name}
    done
}

log "$0 $*"
. local/parse_options.sh
if [ $# -ne 0 ]; then
    log "Error: No positional arguments are required, and there is: $*" 1>&2
    exit 2
fi


# ========================== What is refused ==========================

# whole NAME LEAST [unset]: refuse an option that is no whole number, or less; "unset" lets
# it be empty.
whole() {
    local value=${!1}
    if [ -z "${value}" ] && [ "${3:-}" = unset ]; then
        return
    fi
    { [[ ${value} =~ ^[0-9]{1,9}$ ]] && [ "$((10#${value}))" -ge "$2" ]; } \
        || die "--$1 ${value}: is no whole number of at least $2"
    printf -v "$1" %d "$((10#${value}))"
}
# number NAME CONDITION WORDS: refuse an option x, a decimal number, that does not meet the
# condition.
number() {
    { [[ ${!1} =~ ^([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?$ ]] \
        && LC_ALL=C awk -v x="${!1}" "BEGIN {exit !($2)}"; } \
        || die "--$1 ${!1}: is no number $3"
}
# plain OPTION WORD...: refuse what ESPnet's scripts do not bear in a name or a path: they
# split it and run it, and commas and colons end a path for ESPnet.
plain() {
    local option=$1 word
    local unsafe=$'[][:space:]"\x27$`\\;&|<>()*?[{},:!#]'
    shift
    for word in "$@"; do
        [[ ! ${word} =~ ${unsafe} && ${word} != -* ]] \
            || die "${option} ${word}: ESPnet's scripts do not bear spaces and" \
                "marks in a name or a path: write letters, digits and ._+=@%/-"
    done
}

for name in nj num_nodes nbpe num_splits_ssl; do whole "${name}" 1; done
for name in stage stop_stage ngpu max_skipped head_epochs; do whole "${name}" 0; done
for name in ssl_max_epoch asr_max_epoch nclusters km_layer; do whole "${name}" 1 unset; done
whole seed 0 unset
[ "${stop_stage}" -eq 0 ] || [ "${stage}" -le "${stop_stage}" ] \
    || die "--stage ${stage} comes after --stop_stage ${stop_stage}: nothing would be run"
case "${speech_gate}" in
    true | false) ;;
    *) die "--speech_gate ${speech_gate}: write true or false" ;;
esac
case "${exact}" in
    "" | true | false) ;;
    *) die "--exact ${exact}: write true or false" ;;
esac
case "${write_segments}" in
    true|false) ;;
    *) die "--write_segments ${write_segments}: write true or false" ;;
esac
number km_portion "x > 0 && x <= 1" "above 0 and at most 1"
number min_wav_duration "x >= 0" "of at least 0"
number max_wav_duration "x > ${min_wav_duration}" "above --min_wav_duration ${min_wav_duration}"
[ -z "${sharpness}" ] || number sharpness "x > 0 && x <= 100" "above 0 and at most 100"
[ -z "${min_confidence}" ] || number min_confidence "x >= 0 && x <= 1" "in [0, 1]"
case "${token_type}" in
    char|bpe|word) ;;
    *) die "--token_type ${token_type}: write char or bpe" ;;
esac
[ -n "${corpus}" ] || die "--corpus is empty"
for name in corpus train_set valid_set asr_train_set asr_valid_set finetune_sets test_sets \
    scorer_name scorer_lang scorer_task audio_format inference_ssl_model inference_asr_model; do
    value=${!name}
    if [[ ${name} = *_sets ]]; then
        # shellcheck disable=SC2086
        (set -f; plain "--${name}" ${value})
    else
        plain "--${name}" "${value}"
    fi
    [[ ${value} != */* ]] || die "--${name} ${value}: is a name, not a path: leave out the /"
done
dumpdir=${dumpdir:-dump/${corpus}}
expdir=${expdir:-exp/${corpus}}
for name in dumpdir expdir train_config asr_config scorer_train_config inference_config; do
    plain "--${name}" "${!name}"
done
strange=$(LC_ALL=C grep -n -m 1 $'\r\\|^\xef\xbb\xbf' db.sh | cut -d: -f1 || true)
[ -z "${strange}" ] || die "db.sh:${strange}: has a byte-order mark or the line ends of" \
    "Windows: write it anew as plain text"

# ========================== What is done once ==========================

. local/run_once.sh
runs() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]; }

check_scorer() {
    log "Looking at the scorer ${scorer_model}"
    python3 local/check_scorer.py "${scorer_args[@]}"
}

check_arguments() {
    local scorer=
    [ -n "${scorer_model}" ] || scorer="--asr_config ${scorer_train_config}"
    log "Looking at the arguments of training and scoring"
    # shellcheck disable=SC2086
    python3 local/check_arguments.py --ssl_config "${ssl_config}" --asr_config "${asr_config}" \
        ${scorer} --ssl_args " ${ssl_args}" --asr_args " ${asr_args}" \
        --head_args " ${head_args}"
}

# ========================== What runs here ==========================

. ./path.sh
. ./cmd.sh

[[ ${fs} =~ ^([0-9]+([.][0-9]+)?)\ *([kK]?)([hH][zZ])?$ ]] \
    || die "--fs ${fs}: is no sampling rate: write e.g. 16k or 16000"
sampling_rate=$(awk -v x="${BASH_REMATCH[1]}" -v k="${BASH_REMATCH[3]}" \
    'BEGIN {printf "%d", x * (k == "" ? 1 : 1000) + 0.5}')
[ "${sampling_rate}" -gt 0 ] || die "--fs ${fs}: is no sampling rate: write e.g. 16k or 16000"
fs=${sampling_rate}  # one word for 16k, 16000 and "16 k"
[ "${fs%000}" = "${fs}" ] || fs=${fs%000}k

train_set=${train_set:-${corpus}_unlabelled}
valid_set=${valid_set:-${corpus}_unlabelled_dev}
read -r first_set _ <<< "${finetune_sets:-${corpus}}"
scorer_train_set=${asr_train_set:-${first_set}_train}
scorer_valid_set=${asr_valid_set:-${first_set}_dev}
data_feats=${dumpdir}/raw
if [ -n "${init}" ]; then
    [ -z "${objective}${model_size}" ] \
        || die "--init says what --objective and --model_size would: leave them out"
    plain "--init" "${init}"
    [[ ! -e ${init} || -s ${init}/config.json ]] || die "--init ${init}: holds no config.json"
    train_config=${train_config:-conf/train_init.yaml}
elif [ -z "${train_config}${objective}${model_size}" ]; then
    train_config=conf/train.yaml
elif [ -z "${train_config}" ]; then
    objective=${objective:-hubert}
    masker=${masker:-atm}
    model_size=${model_size:-mini}
    train_config=conf/tuning/train_${objective}_conformer_${model_size}_${masker}.yaml
    [ -s "${train_config}" ] || die "no ${train_config}: --objective ${objective} (hubert," \
        "wav2vec2, w2v_bert or best_rq), --model_size ${model_size} (mini, l or xl) and --masker" \
        "${masker} (atm or random) name no config"
elif [ -n "${objective}${model_size}" ]; then
    die "--train_config says what --objective and --model_size would: leave them out"
fi
scorer_train_config=${scorer_train_config:-${asr_config}}
scorer_id=
if [ -n "${scorer_tag}" ]; then
    [ -z "${scorer_config}${scorer_model}" ] \
        || die "--scorer_tag says what --scorer_config and --scorer_model would: leave them out"
    found=$(python3 local/find_scorer.py "${scorer_tag}" ${scorer_lang:+--lang "${scorer_lang}"} \
        ${scorer_task:+--task "${scorer_task}"}) || exit 1
    # Without a config, the third line is none.
    { read -r scorer_id; read -r scorer_model; read -r scorer_config || true; } <<< "${found}"
elif [ -n "${scorer_lang}${scorer_task}" ] && [ -z "${scorer_model}" ]; then
    die "--scorer_lang and --scorer_task are of a scorer that --scorer_tag names"
fi
if [ -n "${scorer_config}${scorer_model}" ] && [ -z "${scorer_tag}" ]; then
    { [ -n "${scorer_config}" ] && [ -n "${scorer_model}" ]; } \
        || die "--scorer_config and --scorer_model go together"
fi
for file in "${train_config}" "${asr_config}" "${scorer_train_config}" \
    "${inference_config}" "${scorer_config}" "${scorer_config:+${scorer_model}}"; do
    [ -z "${file}" ] || { [ -f "${file}" ] && [ -s "${file}" ]; } \
        || die "no such file, or an empty one: ${file}"
done
local_gpus=
if [ "${ngpu}" -gt 0 ] && [[ ${cmd_backend} = local || ${cmd_backend} = stdout ]]; then
    found=$(python3 -c 'import torch; print(torch.cuda.device_count())')
    local_gpus=${found}
    [ "${found}" -ge "${ngpu}" ] || die "--ngpu ${ngpu}: torch finds ${found} GPUs on this" \
        "machine: leave the option out to use the CPU, or submit jobs (see cmd.sh)"
fi
is_transducer() { grep -q '^decoder: *transducer' "$1"; }
# of_config NAME FILE DEFAULT: what a config says at its top level.
of_config() {
    local value
    value=$(awk -v name="$1:" '$1 == name {print $2}' "$2")
    printf '%s\n' "${value:-$3}"
}
ssl_epochs=${ssl_max_epoch:-$(of_config max_epoch "${train_config}" 40)}  # 40 is ESPnet's
asr_epochs=${asr_max_epoch:-$(of_config max_epoch "${asr_config}" 40)}
if [ "${seed}" = "$(of_config seed "${train_config}" 0)" ] \
    && [ "${seed}" = "$(of_config seed "${asr_config}" 0)" ]; then
    seed=
fi
[ "${head_epochs}" -lt "${asr_epochs}" ] \
    || die "--head_epochs ${head_epochs} leaves nothing of the ${asr_epochs} epochs of fine-tuning"
# The same scores have one name, however they are asked for.
measure_opts= gate=
if [ -n "${score_opts// /}" ]; then
    found=$(python3 local/score_options.py " ${score_opts}")
    { read -r measure_opts; read -r gate || true; } <<< "${found}"
    [ "${gate:-true}" = true ] || ! "${speech_gate}" \
        || die "--speech_gate true, and --score_opts says --speech_gate false: leave one out"
fi
[ "${gate}" != true ] || speech_gate=true
python3 local/check_configs.py --fs "${sampling_rate}" --ssl_config "${train_config}" \
    --asr_configs "${asr_config}" $([ -n "${scorer_model}" ] || echo "${scorer_train_config}")
km_args= km_sum=
if [ -n "${km_model}${km_layer}" ]; then
    { [ -n "${km_model}" ] && [ -n "${km_layer}" ]; } \
        || die "--km_model and --km_layer go together"
    plain --km_model "${km_model}"
    [ ! -d "${km_model}" ] || km_model+=/${inference_ssl_model}
    km_config=$(dirname "${km_model}")/config.yaml
    for file in "${km_model}" "${km_config}"; do
        { [ -f "${file}" ] && [ -s "${file}" ]; } \
            || die "--km_model ${km_model}: no such file, or an empty one: ${file}"
    done
    km_args="--ssl_train_config ${km_config} --ssl_model_file ${km_model} --layer ${km_layer}"
    km_sum=$(cat "${km_config}" "${km_model}" | md5sum | cut -c-8)
fi
# What is the same for all sets of a dump/ must not change under another run.
dump_settings="--fs ${fs} --audio_format ${audio_format} --min_wav_duration ${min_wav_duration}"
dump_settings+=" --max_wav_duration ${max_wav_duration}"
own_dump() {
    local file=${dumpdir}/.steps/settings
    [ ! -e "${file}" ] || [ "$(cat "${file}")" = "${dump_settings}" ] \
        || die "${dumpdir} was made with $(cat "${file}"), not ${dump_settings}: give" \
            "another --dumpdir and --expdir, or remove it"
}
own_dump

# name_scorer: how scoring is told which model it is.
name_scorer() {
    scorer_args=(--scorer "${scorer_model}")
    [ -z "${scorer_config}" ] || scorer_args=(--asr_train_config "${scorer_config}" \
        --asr_model_file "${scorer_model}")
    scorer_args+=(${scorer_lang:+--lang "${scorer_lang}"} ${scorer_task:+--task "${scorer_task}"})
}
if [ -n "${scorer_model}" ]; then
    name_scorer
    [ -z "${scorer_config}" ] \
        || scorer_id=$(cat "${scorer_config}" "${scorer_model}" | md5sum | cut -c-8)
    scorer_id+=${scorer_lang:+_${scorer_lang}}${scorer_task:+_${scorer_task}}
    run_once "${expdir}" "check_scorer_${scorer_id}" "${scorer_id}" check_scorer
fi
if runs 1 && ! "${skip_data_prep}" && [ ! -s "local/data_${corpus}.sh" ]; then
    die "no data preparation for --corpus ${corpus}: there is no local/data_${corpus}.sh, only" \
        "$(echo local/data_*.sh); for data directories of your own give --skip_data_prep true"
fi

# ========================== What runs are called ==========================

# A name holds every setting that makes a run another one and is not the default, so that
# runs live side by side.
changed() { [ "${!1}" != "${defaults[$1]}" ]; }
# slug WORDS: the same for a name of a file; a checksum of what is long.
slug() {
    local found
    found=$(tr -cs 'A-Za-z0-9.+\n-' _ <<< "$*" | sed -E 's/(^|_)--/\1/g; s/^_+//; s/_+$//')
    [ "${#found}" -le 32 ] || found=$(make_key "$*" | cut -c-8)
    printf '%s\n' "${found:-none}"
}
# config_part FILE DEFAULT: what a config is called, less what the default is.
config_part() {
    local name usual
    name=$(basename "$(realpath "$1")" .yaml)
    usual=$(basename "$(realpath "$2")" .yaml)
    if [ "${name}" != "${usual}" ]; then
        name=${name#"${usual}_"}
        name=${name#train_}
        echo "_${name#asr_}"
    fi
}
# sets_part TRAIN VALID DEFAULT_TRAIN DEFAULT_VALID
sets_part() {
    local usual=$4
    if [ "$1" != "$3" ]; then
        usual=${1%_train}_dev
        printf _%s "${1%_train}"
    fi
    [ "$2" = "${usual}" ] || printf _%s "$2"
}

# Of the scorer, and of fine-tuning, which are trained alike.
labelled_part=
if changed token_type || { [ "${token_type}" = bpe ] && changed nbpe; }; then
    labelled_part+=_${token_type}
    [ "${token_type}" != bpe ] || labelled_part+=${nbpe}
fi
! changed asr_max_epoch || labelled_part+=_ep${asr_epochs}
! changed asr_args || labelled_part+=_$(slug "${asr_args}")
scorer_part=${scorer_name:+_${scorer_name}}
if [ -n "${scorer_model}" ]; then
    scorer_part=${scorer_part:-_${scorer_id}}
else
    read -r first_set _ <<< "${defaults[finetune_sets]:-${corpus}}"
    scorer_part=${scorer_part:-$(sets_part "${scorer_train_set}" "${scorer_valid_set}" \
        "${defaults[asr_train_set]:-${first_set}_train}" \
        "${defaults[asr_valid_set]:-${first_set}_dev}")}
    scorer_part+=$(config_part "${scorer_train_config}" \
        "${defaults[scorer_train_config]:-${defaults[asr_config]}}")${labelled_part}
fi
scorer_run=scorer${scorer_part}

ssl_part=$(sets_part "${train_set}" "${valid_set}" \
    "${defaults[train_set]:-${corpus}_unlabelled}" \
    "${defaults[valid_set]:-${corpus}_unlabelled_dev}")
ssl_part+=${min_confidence:+_min${min_confidence}}${scorer_part:+${scorer_part}_scorer}
[ -z "${measure_opts}" ] || ssl_part+=_$(slug "${measure_opts}")
! "${speech_gate}" || ssl_part+=_gated
! changed ssl_args || ssl_part+=_$(slug "${ssl_args}")
! changed ssl_max_epoch || ssl_part+=_ep${ssl_epochs}
[ "${num_splits_ssl}" -eq 1 ] || ssl_part+=_splits${num_splits_ssl}
! changed km_portion || portion=${km_portion}
ssl_part+=${km_sum:+_km${km_sum}_layer${km_layer}}
mkdir -p "${expdir}"
if [ -n "${init}" ]; then
    # A tag's files do not change; a folder's may.
    init_key=$(make_key "${init}" "$(cat "${train_config}")" \
        "$([ ! -d "${init}" ] || find -L "${init}" -type f -exec md5sum {} + | sort)")
    init_dir=${expdir}/init/${init_key:0:8}
    import_init() {
        log "Importing ${init}"
        # Pseudo-labels are of 10 ms, the model's frames of 20 ms.
        python3 -m espnet_atm.bin.import_ssl --model "${init}" --output_dir "${init_dir}" \
            --base_config "${train_config}" --label_downsampling 2
    }
    run_once "${expdir}" "import_${init_key:0:8}" "${init_key}" import_init
    init_name=$(slug "$(basename "${init}")")
    cp "${init_dir}/train.yaml" "${init_dir}/train_init_${init_name}.yaml"
    train_config=${init_dir}/train_init_${init_name}.yaml
fi
# The run's config, named by its settings: train_config with ssl_conf and num_classes.
# Made first, so that impossible settings do not wait for the scorer.
ssl_config=$(python3 local/make_ssl_config.py --config "${train_config}" \
    --masker "${masker}" --mask_ratio "${mask_ratio}" --span "${span}" \
    --strategy "${strategy}" --sharpness "${sharpness}" --exact "${exact}" \
    --validation_masker "${validation_masker}" --loss_scale "${loss_scale}" \
    --num_classes "${nclusters}" --frame_prob "${frame_prob}" \
    --km_portion "${portion:-}" --name_part "${ssl_part}" --output_dir "${expdir}/conf")
ssl_name=$(basename "${ssl_config}" .yaml)
seed_part=${seed:+_seed${seed}}
ssl_tag=${ssl_name}${seed_part}

asr_part=$(config_part "${asr_config}" "${defaults[asr_config]}")
[ -z "${scorer_model}" ] || asr_part+=${labelled_part}
! changed head_epochs || asr_part+=_head${head_epochs}
! changed head_args || [ "${head_epochs}" -eq 0 ] || asr_part+=_$(slug "${head_args}")
! changed inference_ssl_model || asr_part+=_${inference_ssl_model%.pth}
# asr_name [SET]: what is fine-tuned on it, whatever the seed.
asr_name() { printf '%s\n' "${ssl_name}${1:+_$1}${asr_part}"; }

decode_part=
if changed inference_config; then
    decode_part+=_$(basename "${inference_config:-default}" .yaml | sed 's/^decode_//')
fi
! changed inference_asr_model || decode_part+=_${inference_asr_model%.pth}

log "Scorer: ${scorer_model:-${expdir}/asr_${scorer_run}}"
log "Pre-training: ${expdir}/ssl_${ssl_tag}_raw"
for name in ${finetune_sets:-""}; do
    # shellcheck disable=SC2086
    name_there=$(asr_name ${name})
    log "Fine-tuning on ${name:-${scorer_train_set}}: ${expdir}/asr_${name_there}${seed_part}" \
        "(in RESULTS.md ${name_there}${decode_part}, seed ${seed:-$(of_config seed "${ssl_config}" 0)})"
done

# A copy that is the run's own: another of this name may have other settings, which are not
# in the name, and begin before this one trains.
kept_config=${expdir}/conf/.$(md5sum < "${ssl_config}" | cut -c-8)/${ssl_tag}.yaml
mkdir -p "${kept_config%/*}"
cp "${ssl_config}" "${kept_config}.$$"
mv "${kept_config}.$$" "${kept_config}"
ssl_config=${kept_config}
checked=$(make_key "$(cat "${ssl_config}" "${asr_config}" "${scorer_train_config}")" \
    "${scorer_model}" "${ssl_args}" "${asr_args}" "${head_args}")
run_once "${expdir}" "check_arguments_${checked:0:8}" "${checked}" check_arguments
nclusters=$(sed -n 's/^ \{1,\}num_classes: //p' "${ssl_config}")
needs_labels=false
[ -z "${nclusters}" ] || needs_labels=true

ssl_sh() {
    # ssl.sh logs a variable "iter" that it never sets
    iter= ./ssl.sh --nj "${nj}" --ngpu "${ngpu}" --num_nodes "${num_nodes}" \
        --dumpdir "${dumpdir}" --expdir "${expdir}" --python "${python}" \
        --audio_format "$(cat "${data_feats}/${train_set}/audio_format")" --fs "${fs}" \
        --feats_normalize none \
        --min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}" \
        --train_set "${train_set}" --valid_set "${valid_set}" "$@"
}

asr_sh() {
    ./asr.sh --nj "${nj}" --inference_nj "${nj}" --ngpu "${ngpu}" \
        --dumpdir "${dumpdir}" --expdir "${expdir}" --lang "${asr_lang}" \
        --asr_stats_dir "${asr_stats}" --feats_normalize utterance_mvn \
        --audio_format "${audio_format}" --fs "${fs}" \
        --min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}" \
        --python "${python}" \
        --token_type "${token_type}" --nbpe "${nbpe}" --use_lm false \
        --bpe_train_text "data/${asr_train_set}/text" \
        --asr_config "${asr_config}" \
        --asr_args "${asr_max_epoch:+--max_epoch ${asr_max_epoch}} ${asr_args}" \
        --inference_config "${inference_config}" \
        --inference_asr_model "${inference_asr_model}" --inference_tag "decode${decode_part}" \
        --train_set "${asr_train_set}" --valid_set "$(labelled_name "${asr_valid_set}")" \
        --test_sets "${test_sets}" "$@"
}

# ========================== Data ==========================

# What each step depends on. After stages 1 and 2 it is in "keys": the files may be large, and
# many steps ask for it.
declare -A keys
sets_key() {
    if [ -n "${keys[$*]:-}" ]; then
        echo "${keys[$*]}"
        return
    fi
    make_key "${fs} ${audio_format} ${min_wav_duration} ${max_wav_duration}" \
        "$(for dset in "$@"; do
            echo "${dset}"
            for file in wav.scp segments text utt2spk; do
                [ ! -e "data/${dset}/${file}" ] || cat "data/${dset}/${file}"
            done
        done | md5sum)"
}
# The corpora themselves are not looked at: where files were added, remove data/.steps.
data_key() {
    make_key "${corpus} ${size} ${local_data_opts}" "$(cat db.sh)" \
        "$(find local/ -name '*.py' -o -name '*.sh' | sort \
            | grep -vE '/(path|paper|results|make_|find_scorer|cuts|shards|format_shards|subset_by|check_|run_once|follow_|options|parse_|score_)' | xargs cat)"
}
# prepare_once NAME KEY SETS FUNCTION: run_once in data/, and again if a set is not there.
prepare_once() {
    local dset
    for dset in $3; do
        [ -s "data/${dset}/wav.scp" ] || rm -f "data/.steps/$1.done"
    done
    run_once data "$1" "$2" "$4"
}
# Runs that read data/ hold this lock together; the one that writes there holds it alone.
data_lock=data/.${corpus}.use
data_options="--size ${size:-all} --local_data_opts ${local_data_opts}"
no_readers() {
    flock -n 7 || die "another run of --corpus ${corpus} is at work, and data/ would change" \
        "under it: wait for its end, or give it the same --size, --local_data_opts and" \
        "--segment_opts"
}
prepare() {
    # shellcheck disable=SC2086
    (
        flock 8  # held by what an earlier, killed run left running
        no_readers
        local/data.sh --corpus "${corpus}" --nj "${nj}" ${size:+--size ${size}} \
            ${local_data_opts} | tee "data/.${corpus}.log"
        echo "${data_options}" > "data/.steps/options_${corpus}"
    ) 8> "data/.${corpus}.lock" 7> "${data_lock}"
}
segment() {
    # shellcheck disable=SC2086
    (
        flock 8
        no_readers
        "local/segment_${corpus}.sh" --nj "${nj}" ${segment_opts}
    ) 8> "data/.${corpus}.lock" 7> "${data_lock}"
}
# parts_of SET: a_train and b_train of a+b_train, unless that is somebody's own; else SET.
parts_of() {
    if [[ $1 = *+* ]] && { [ ! -s "data/$1/wav.scp" ] || [ -e "data/.steps/combine_$1.begun" ]; }
    then
        echo "${1//+/_${1##*_} }"
    else
        echo "$1"
    fi
}
# combine: data/${combined}, of ${parts}.
combine() {
    local own=data/.combined_${combined} dset table twice all kept
    rm -rf "${own}" "${own}_parts" "data/${combined}"
    for dset in ${parts}; do
        [ -s "data/${dset}/text" ] || die "data/${combined}: no data/${dset}/text: a part of it" \
            "was not prepared"
    done
    for table in utt2spk wav.scp; do
        twice=$(for dset in ${parts}; do cut -d ' ' -f 1 "data/${dset}/${table}"; done \
            | sort | uniq -d)
        [ -z "${twice}" ] || die "data/${combined}: $(wc -l <<< "${twice}") ids of ${table} are in" \
            "more than one of ${parts}, the first: ${twice%%$'\n'*}; leave out a set that is part" \
            "of another"
    done
    for dset in ${parts}; do
        mkdir -p "${own}_parts/${dset}"
        for table in wav.scp segments text utt2spk; do
            [ ! -e "data/${dset}/${table}" ] \
                || cp "data/${dset}/${table}" "${own}_parts/${dset}"
        done
    done
    # Where some have segments, combine_data.sh wants a program of Kaldi's for the lengths of
    # the others' recordings, and goes on without them. Reading stops at their ends.
    if compgen -G "${own}_parts/*/segments" > /dev/null; then
        for dset in "${own}_parts"/*; do
            [ -e "${dset}/segments" ] \
                || awk '{print $1, $1, 0, 86400}' "${dset}/wav.scp" > "${dset}/segments"
        done
    fi
    utils/combine_data.sh "${own}" "${own}_parts"/*
    all=$(cat "${own}_parts"/*/utt2spk | wc -l)
    kept=$(wc -l < "${own}/utt2spk")
    [ "${kept}" -eq "${all}" ] || die "data/${combined}: only ${kept} of ${all} utterances of" \
        "${parts} have audio, text and a speaker"
    rm -r "${own}_parts"
    mv "${own}" "data/${combined}"
}

unlabelled_sets="${train_set} ${valid_set}"
trained_sets="${scorer_train_set} ${scorer_valid_set}"
asr_train_sets=" ${scorer_train_set} "
for name in ${finetune_sets}; do
    trained_sets+=" ${name}_train ${name}_dev"
    asr_train_sets+="${name}_train "
done
trained_sets=$(tr ' ' '\n' <<< "${trained_sets}" | sort -u)
segmented=false
[ ! -x "local/segment_${corpus}.sh" ] || segmented=true

if runs 1; then
    if "${skip_data_prep}"; then
        log "Stage 1: Skipped: data/ holds the data directories"
    else
        log "Stage 1: Data preparation: ${corpus}"
        made=${test_sets}
        for dset in ${trained_sets}; do
            made+=" $(parts_of "${dset}")"
        done
        "${segmented}" || made+=" ${unlabelled_sets}"
        prepare_once "prepare_${corpus}" "$(data_key)" "${made}" prepare
        if grep -q ' could not be prepared ' "data/.${corpus}.log"; then
            log "Stage 1: what could not be prepared is tried again the next time"
            rm -f "data/.steps/prepare_${corpus}.done"
        fi
    fi
    for combined in ${trained_sets}; do
        parts=$(parts_of "${combined}")
        [ "${parts}" != "${combined}" ] || continue
        # "whole": what was combined by an earlier version may lack parts.
        # shellcheck disable=SC2086
        prepare_once "combine_${combined}" "whole $(sets_key ${parts})" "${combined}" combine
    done
fi

if runs 2; then
    if "${segmented}" && ! "${skip_data_prep}"; then
        log "Stage 2: Cut the recordings of ${corpus} into segments"
        recordings=data/local/${corpus}/recordings
        prepare_once "segment_${corpus}" "$(make_key "$(data_key)" "${segment_opts}" \
            "$([ ! -e "${recordings}" ] || md5sum < "${recordings}")")" \
            "${unlabelled_sets}" segment
    else
        log "Stage 2: Nothing to cut: the recordings of ${corpus} are utterances"
    fi
fi

if [ "${stop_stage}" -le 2 ]; then
    log "Successfully finished. [elapsed=${SECONDS}s]"
    exit 0
fi
if [ -z "${test_sets}" ] && [ -s "data/local/${corpus}/test_sets" ]; then
    test_sets=$(cat "data/local/${corpus}/test_sets")
elif [ -z "${test_sets}" ]; then
    for dir in "data/${corpus}_test"*; do
        [ -d "${dir}" ] && test_sets+="${dir##*/} "
    done
fi
[ -n "${test_sets}" ] || die "no test set: name them by --test_sets, or run stage 1" \
    "(there is no data/${corpus}_test*)"
labelled_sets="${trained_sets} ${test_sets}"
if [ -d data ]; then
    exec 7> "${data_lock}"
    flock -s -n 7 || die "another run of --corpus ${corpus} prepares data/: wait for its end"
fi
if ! runs 1 && [ -n "${size}${local_data_opts}" ] && [ -s "data/.steps/options_${corpus}" ]; then
    [ "$(cat "data/.steps/options_${corpus}")" = "${data_options}" ] || die "data/ was prepared" \
        "with $(cat "data/.steps/options_${corpus}"), not ${data_options}: run stages 1 to 4 first"
fi
if runs 1 && ! "${skip_data_prep}" && [ -s "data/.steps/prepare_${corpus}.done" ]; then
    [ "$(cat "data/.steps/prepare_${corpus}.done")" = "$(data_key)" ] \
        || die "another run of --corpus ${corpus} has prepared data/ with other options since"
fi
for dset in ${unlabelled_sets} ${labelled_sets}; do
    [ -s "data/${dset}/wav.scp" ] || die "data/${dset}/wav.scp is missing or empty: run" \
        "stages 1 and 2, or name your own sets (--train_set, --valid_set, --asr_train_set," \
        "--asr_valid_set, --finetune_sets, --test_sets)"
done
for dset in ${labelled_sets}; do
    [ -s "data/${dset}/text" ] || die "data/${dset}/text is missing or empty"
done

for name in "${unlabelled_sets}" ${unlabelled_sets} ${labelled_sets}; do
    # shellcheck disable=SC2086
    keys[${name}]=$(sets_key ${name})
done
# What utterances of a pool say is not looked at: in dump/, a set that is labelled too, for this
# run or among the corpus's test sets, is another set as a pool.
# shellcheck disable=SC2086
pool_key=$(sets_key ${unlabelled_sets})
data_sets=${unlabelled_sets}
known_sets="${labelled_sets} $(cat "data/local/${corpus}/test_sets" 2> /dev/null || true)"
for name in train_set valid_set; do
    if grep -qxF -- "${!name}" <(tr ' ' '\n' <<< "${known_sets}"); then
        printf -v "${name}" %s "${!name}_pool"
    fi
done
unlabelled_sets="${train_set} ${valid_set}"
[ "${unlabelled_sets}" = "${data_sets}" ] \
    || pool_key=$(make_key "${pool_key}" "${unlabelled_sets}")

# labelled_name SET: what a set that is trained or validated on is called in dump/. A test set
# is kept whole: one that is validated on too, less what stage 4 drops, is another set there.
labelled_name() {
    if [[ ${asr_train_sets} != *" $1 "* ]] && grep -qxF -- "$1" <(tr ' ' '\n' <<< "${test_sets}")
    then
        echo "$1_labelled"
    else
        echo "$1"
    fi
}

# use_labelled [SET]: what asr.sh trains on from here: <SET>_train and <SET>_dev, or what
# the scorer is trained on. Equal sets have the same tokens and statistics.
use_labelled() {
    asr_train_set=${1:+${1}_train}
    asr_train_set=${asr_train_set:-${scorer_train_set}}
    asr_valid_set=${1:+${1}_dev}
    asr_valid_set=${asr_valid_set:-${scorer_valid_set}}
    local own=${1:+_$1}
    if [ "${asr_train_set} ${asr_valid_set}" = "${scorer_train_set} ${scorer_valid_set}" ]; then
        own=${scorer_name:+_${scorer_name}_scorer}
    fi
    labelled_key=$(sets_key "${asr_train_set}" "${asr_valid_set}")
    tokens_key=$(make_key "${labelled_key}" "${token_type} ${nbpe}")
    asr_stats=${expdir}/asr_stats${own}_${tokens_key:0:8}
    asr_lang=${corpus}${own}_${tokens_key:0:8}
}
# What a training is, in lines of "name: value": it is refused to go on with another's folder.
settings_of() { python3 local/check_configs.py --settings "$1"; }
labelled_settings() {
    echo "transcribed data, ${asr_train_set} and ${asr_valid_set}: ${labelled_key}"
    echo "--token_type: ${token_type}"
    [ "${token_type}" != bpe ] || echo "--nbpe: ${nbpe}"
    echo "--asr_args: ${asr_args}"
}
use_labelled
scorer_settings=
if [ -z "${scorer_model}" ]; then
    scorer_settings=$(echo "max_epoch: ${asr_epochs}"; labelled_settings
        settings_of "${scorer_train_config}")
fi
scorer_key=$(make_key "${scorer_settings}")

# for_each_set FUNCTION: run FUNCTION with each set as "dset" in data/, "dumped" in dump/, and
# "role": pool, labelled (what is trained on), or test.
for_each_set() {
    local dset dumped role dumped_sets=(${unlabelled_sets})
    for dset in ${data_sets}; do
        dumped=${dumped_sets[0]} role=pool
        dumped_sets=("${dumped_sets[@]:1}")
        "$1"
    done
    for dset in ${trained_sets}; do
        dumped=$(labelled_name "${dset}") role=labelled
        "$1"
    done
    for dset in ${test_sets}; do
        dumped=${dset} role=test
        [[ ${asr_train_sets} = *" ${dset} "* ]] || "$1"
    done
}
set_key() {
    local written=
    [ "${role}" != pool ] || ! "${write_segments}" || written=written
    make_key "$(sets_key "${dset}")" "${role}${written}"
}
is_cuts() { head -n 1 "$1/wav.scp" | grep -qE ':[0-9]+:[0-9]+$'; }

# These two do for one set what ssl.sh and asr.sh do for a training and a validation set in
# their stages 3 and 4: the same set may be shared by runs that pair it with another.
format_set() {
    local to=${data_feats}/org/${dumped} opts=() no_text= why cuts written=false
    [ "${role}" != test ] || to=${data_feats}/${dumped}
    # What a killed run has left is gone on from, if it is of the same data.
    if [ "$(cat "${to}/.key" 2> /dev/null)" != "$(set_key)" ]; then
        rm -rf "${to}"/{audio,data,lost,shards}
        mkdir -p "${to}"
        set_key > "${to}/.key"
    fi
    # As cuts, one reads the recordings where they are. Archives are written by ESPnet alone.
    if [ "${role}" = pool ] && ! { "${write_segments}" && [[ ${audio_format} = *ark ]]; }; then
        cuts=${to}
        ! "${write_segments}" || cuts=${to}/cuts written=true
        if why=$(python3 local/cuts.py make --fs "${sampling_rate}" --nj "${nj}" \
            "data/${dset}" "${cuts}"); then
            if "${written}"; then
                write_audio
            else
                log "${dumped}: $(wc -l < "${to}/wav.scp") cuts into the recordings; no audio is written"
            fi
            return
        elif [ $? -ne 3 ]; then
            exit 1
        fi
        log "${why}"
    fi
    [ "${role}" != pool ] || no_text=" --no-text"
    utils/copy_data_dir.sh --validate_opts "--non-print${no_text}" "data/${dset}" "${to}"
    rm -f "${to}"/{segments,wav.scp,reco2file_and_channel,reco2dur}
    [ ! -e "data/${dset}/segments" ] || opts=(--segments "data/${dset}/segments")
    [ "${role}" != pool ] || opts+=(--without_bad true)
    local/format_shards.sh --nj "${nj}" --cmd "${train_cmd}" --audio_format "${audio_format}" \
        --fs "${fs}" ${opts[@]+"${opts[@]}"} "data/${dset}/wav.scp" "${to}"
    echo raw > "${to}/feats_type"
    echo "${audio_format}" > "${to}/audio_format"
    # ESPnet wants a text file. The pool has none to give away.
    [ "${role}" != pool ] || awk '{print $1 " unlabelled"}' "${to}/wav.scp" > "${to}/text"
    [ ! -s "${to}/lost" ] || utils/fix_data_dir.sh "${to}"
    tell_lost
}
# write_audio: of format_set's cuts. What is there is not written again.
write_audio() {
    log "${dumped}: writing $(wc -l < "${cuts}/wav.scp") segments... log: '${to}/logs/write.*.log'"
    opts=(--audio_format "${audio_format}" --jobs "${nj}" "${cuts}" "${to}")
    ${train_cmd} JOB=1:"${nj}" "${to}/logs/write.JOB.log" \
        python3 local/cuts.py write --job JOB "${opts[@]}" \
        || { tail -n 20 "${to}"/logs/write.*.log; exit 1; }
    python3 local/cuts.py join "${opts[@]}"
    rm -r "${cuts}"
    tell_lost
}
tell_lost() {
    [ -s "${to}/lost" ] || return 0
    head -n 10 "${to}/lost" 1>&2
    log "Warning: $(wc -l < "${to}/lost") utterances of ${dumped} cannot be read and are left out;" \
        "${to}/lost says which and why. Once they are mended, remove" \
        "${dumpdir}/.steps/{format,drop}_${dumped}.done and run stages 3 and 4 again" 1>&2
}
drop_from_set() {
    local from=${data_feats}/org/${dumped} to=${data_feats}/${dumped} all kept
    if is_cuts "${from}" || [ -d "${from}/audio" ]; then  # local/cuts.py has made it
        found=$(python3 local/cuts.py select --least "$(samples_of "${min_wav_duration}")" \
            --most "$(samples_of "${max_wav_duration}")" "${from}" "${to}")
        read -r all kept <<< "${found}"
        tell_kept
        return
    fi
    utils/copy_data_dir.sh --validate_opts --non-print "${from}" "${to}"
    cp "${from}"/{feats_type,audio_format} "${to}"
    awk -v least="${min_wav_duration}" -v most="${max_wav_duration}" -v fs="${sampling_rate}" \
        '$2 > int(least * fs) && $2 < int(most * fs)' \
        "${from}/utt2num_samples" > "${to}/utt2num_samples"
    utils/filter_scp.pl "${to}/utt2num_samples" "${from}/wav.scp" > "${to}/wav.scp"
    awk 'NF != 1' "${from}/text" > "${to}/text"
    utils/fix_data_dir.sh "${to}"
    all=$(wc -l < "${from}/wav.scp")
    kept=$(wc -l < "${to}/wav.scp")
    tell_kept
}
samples_of() { awk -v x="$1" -v fs="${sampling_rate}" 'BEGIN {printf "%d", x * fs}'; }
tell_kept() {
    log "${dumped}: ${kept} of ${all} utterances kept; $((all - kept)) are shorter" \
        "than ${min_wav_duration} s, longer than ${max_wav_duration} s or without text"
    [ "${kept}" -gt 0 ] || die "nothing is left of ${dumped}"
}
set_keys() { for_each_set set_key; }
check_sets() {
    local opts=() dset
    for dset in ${data_sets}; do  # stage 2 has looked at recordings that it cuts
        if "${segmented}" && ! "${skip_data_prep}"; then
            opts+=(--tables "data/${dset}")
        else
            opts+=(--pool "data/${dset}")
        fi
    done
    for dset in ${labelled_sets}; do
        opts+=(--labelled "data/${dset}")
    done
    python3 local/check_data.py --nj "${nj}" "${opts[@]}"
}
one_role() {
    local file=${dumpdir}/.steps/role_${dumped}
    (set -o noclobber; echo "${role}" > "${file}") 2> /dev/null || true
    [ "$(cat "${file}")" = "${role}" ] || die "data/${dset} is a ${role} set here, and a" \
        "$(cat "${file}") set of another run in ${dumpdir}: give another --dumpdir and --expdir"
}
if runs 3; then
    log "Stage 3: Format wav.scp: data/ -> ${data_feats}"
    mkdir -p "${dumpdir}/.steps"
    (set -o noclobber; echo "${dump_settings}" > "${dumpdir}/.steps/settings") 2> /dev/null || true
    own_dump
    key=$(make_key "$(set_keys)")
    run_once "${dumpdir}" "check_${key:0:8}" "${key}" check_sets
    for_each_set one_role
    format_once() { run_once "${dumpdir}" "format_${dumped}" "$(set_key)" format_set; }
    for_each_set format_once
fi

if runs 4; then
    log "Stage 4: Drop too long or short utterances"
    drop_once() {
        [ "${role}" = test ] \
            || run_once "${dumpdir}" "drop_${dumped}" "$(set_key)" drop_from_set
    }
    for_each_set drop_once
fi

# same_data: refuse to go on with a set in dump/ that is not what is in data/, if one of the
# stages to run reads it.
same_data() {
    local step=drop state n stages="5 11" reads=false
    [ "${role}" != pool ] || stages="6 7 8 9 10"
    [ "${role}" != test ] || stages=12
    for n in ${stages}; do
        ! runs "${n}" || reads=true
    done
    "${reads}" || return 0
    [ "${role}" != test ] || step=format
    state=${dumpdir}/.steps/${step}_${dumped}
    [ ! -e "${state}.begun" ] || [ "$(cat "${state}.done" 2> /dev/null)" = "$(set_key)" ] \
        || die "${data_feats}/${dumped} is not made of data/${dset} as it is, or not to its" \
            "end: run stages 3 and 4 first"
    [ -s "${data_feats}/${dumped}/wav.scp" ] \
        || die "${data_feats}/${dumped}/wav.scp is missing or empty: run stages 3 and 4 first"
}
for_each_set same_data
# What is lost of a pool, and found again, makes another one of it.
for dset in ${unlabelled_sets}; do
    [ ! -s "${data_feats}/org/${dset}/lost" ] \
        || pool_key=$(make_key "${pool_key}" "$(md5sum < "${data_feats}/org/${dset}/lost")")
done

# ========================== Confidence ==========================

scorer_exp=${expdir}/asr_${scorer_run}
tokens_and_stats() {
    # asr.sh makes the tokens of a file in dumpdir that all models would share.
    mkdir -p "${asr_stats}/dump/raw"
    awk 'NF != 1 {$1 = $1; print}' "${data_feats}/org/${asr_train_set}/text" \
        > "${asr_stats}/dump/raw/lm_train.txt"
    asr_sh --stage 5 --stop_stage 5 --asr_tag "${scorer_run}" --dumpdir "${asr_stats}/dump"
    asr_sh --stage 6 --stop_stage 10 --asr_tag "${scorer_run}"
}
train_scorer() {
    asr_config=${scorer_train_config} asr_sh --stage 11 --stop_stage 11 --asr_tag "${scorer_run}"
}
if runs 5; then
    log "Stage 5: Scorer: ${scorer_model:-trained on ${scorer_train_set}}"
    run_once "${asr_stats}" tokens_and_stats "${tokens_key}" tokens_and_stats
    if [ -z "${scorer_model}" ]; then
        run_once "${scorer_exp}" train "${scorer_key}" train_scorer \
            "${inference_asr_model}" "${scorer_settings}"
    fi
fi
own_scorer=false
if [ -z "${scorer_model}" ]; then
    own_scorer=true
    [ "${stop_stage}" -le 5 ] || need 5 "${scorer_exp}" "${scorer_key}" \
        "${inference_asr_model}"
    scorer_config=${scorer_exp}/config.yaml
    scorer_model=${scorer_exp}/${inference_asr_model}
    name_scorer
fi

# One folder for each scorer and measure.
gate_opt=
! "${speech_gate}" || gate_opt=--speech_gate
scorer_sum() {
    if [ -z "${scorer_config}" ]; then
        echo "${scorer_id}"
    else
        [ ! -s "${scorer_model}" ] || cat "${scorer_model}" "${scorer_config}" | md5sum
        echo "${scorer_lang}${scorer_task:+ ${scorer_task}}"
    fi
}
score_key=$(make_key "${pool_key}" "$(xargs <<< "${measure_opts} ${gate_opt}")" utt2audio \
    "$(scorer_sum)")
confidence_dir=${expdir}/confidence_${score_key:0:8}
# in_jobs PROGRAM NGPU SET DIR FILES OPTION...: run one of our programs on a set, in parallel
# jobs of at most one GPU each that go on where they were, and join what they list in FILES.
in_jobs() {
    local program=$1 _ngpu=$(($2 > 0)) dset=$3 dir=$4 files=$5
    local scp=${data_feats}/${dset}/wav.scp logdir=${dir}/logdir
    local _nj _split= n all file verb=scor
    shift 5
    [ "${program}" = score ] || verb=labell
    mkdir -p "${logdir}"
    all=$(wc -l < "${scp}")
    [ "${all}" -gt 0 ] || die "${scp} is empty: there is nothing to ${program}"
    _nj=$((nj < all ? nj : all))
    # On this machine a GPU has one job.
    [ "${_ngpu}" -eq 0 ] || [ -z "${local_gpus}" ] \
        || _nj=$((_nj < local_gpus ? _nj : local_gpus))
    for n in $(seq "${_nj}"); do
        mkdir -p "${logdir}/${_nj}.${n}"
        _split+=" ${logdir}/${_nj}.${n}/wav.scp"
    done
    # shellcheck disable=SC2086
    utils/split_scp.pl "${scp}" ${_split}
    log "${verb^}ing ${dset} started... log: '${logdir}/${program}.*.log'"
    # A job knows nothing of what the others skip: the bound is on all of them together.
    ${decode_cmd} --gpu "${_ngpu}" JOB=1:"${_nj}" "${logdir}/${program}".JOB.log \
        python3 -m "espnet_atm.bin.${program}" \
            --ngpu "${_ngpu}" --job JOB \
            --wav_scp "${logdir}/${_nj}.JOB/wav.scp" \
            --output_dir "${logdir}/${_nj}.JOB" \
            --max_skipped "${all}" \
            "$@" || { tail -n 20 "${logdir}/${program}".*.log; exit 1; }
    for file in ${files} skipped; do
        for n in $(seq "${_nj}"); do
            cat "${logdir}/${_nj}.${n}/${file}"
        done | sed '/^$/d' > "${dir}/${file}.partial"
        mv "${dir}/${file}.partial" "${dir}/${file}"
    done
    file=${files%% *}
    diff <(utils/filter_scp.pl --exclude "${dir}/skipped" "${scp}" | cut -d' ' -f1) \
        <(cut -d' ' -f1 "${dir}/${file}") > "${dir}/difference" \
        || die "${dset}: not every utterance is either in ${file} once or skipped for a" \
            "reason: see ${dir}/difference"
    log "${dset}: $(wc -l < "${dir}/${file}") of ${all} utterances ${verb}ed"
    [ -s "${dir}/${file}" ] || die "${dset}: nothing is ${verb}ed: see ${dir}/skipped"
    first_job=${logdir}/${_nj}.1
}
score_set() {
    local dir=${confidence_dir}/$1
    # shellcheck disable=SC2086
    in_jobs score "${ngpu}" "$1" "${dir}" "confidence.scp utt2confidence utt2audio" \
        "${scorer_args[@]}" ${score_opts} ${gate_opt}
    cp "${first_job}"/{frame_shift,frame_offset,sampling_rate,scorer} "${dir}"
    python3 -m espnet_atm.bin.summary --confidence_dir "${dir}"
}
score() {
    local skipped
    for dset in ${unlabelled_sets}; do
        score_set "${dset}"
    done
    for dset in ${unlabelled_sets}; do
        skipped=$(wc -l < "${confidence_dir}/${dset}/skipped")
        [ "${skipped}" -le "${max_skipped}" ] || die "${skipped} utterances of ${dset} have no" \
            "score, more than --max_skipped ${max_skipped}: ${confidence_dir}/${dset}/skipped" \
            "says which and why. Mend them and run stage 6 again, take them out of" \
            "data/${dset}, or go on without them by --max_skipped ${skipped}"
    done
}
if runs 6; then
    log "Stage 6: Score ${unlabelled_sets}"
    run_once "${confidence_dir}" score "${score_key} ${max_skipped}" score
fi

# scored: refuse to go on without scores.
scored() {
    local dset
    for dset in ${unlabelled_sets}; do
        [ -s "${confidence_dir}/${dset}/confidence.scp" ] \
            || die "${confidence_dir}/${dset} has no scores of these data by this scorer: run" \
                "stage 6 first"
    done
}
report() {
    local dir=data/${data_sets% *}
    scored
    python3 -m espnet_atm.bin.report \
        --confidence_dir "${confidence_dir}/${train_set}" \
        --wav_scp "${data_feats}/${train_set}/wav.scp" \
        --ssl_config "${ssl_config}" \
        --output_dir "${confidence_dir}/report" \
        $([ ! -e "${dir}/utt2category" ] || echo --utt2category "${dir}/utt2category") \
        > /dev/null  # what it prints is shown below, also when it was done before
}
if runs 7; then
    log "Stage 7: Confidence report"
    # Scores that were summarised again have lost what the report added, and it may be gone.
    { [ -s "${confidence_dir}/report/report.html" ] \
        && [ -s "${confidence_dir}/report/guidance.txt" ] \
        && grep -qs '"guidance"' "${confidence_dir}/${train_set}/summary.json"; } \
        || rm -f "${confidence_dir}/.steps/report.done"
    run_once "${confidence_dir}" report "$(make_key "${score_key}" \
        "$(python3 local/check_configs.py --guidance "${ssl_config}")")" report
fi

# Pseudo-labels are those of all utterances: what is selected below finds its own among them.
km_pool=${pool_key}
# Pre-training gets data directories of its own where utterances have no score, and, for
# training, where --min_confidence leaves some out.
all_sets="${train_set} ${valid_set}"
least=${min_confidence:-0}
if [ -n "${min_confidence}" ] || [ -s "${confidence_dir}/${train_set}/skipped" ]; then
    train_set+=_min${least}_${score_key:0:8}
fi
if [ -s "${confidence_dir}/${valid_set}/skipped" ]; then
    valid_set+=_min0_${score_key:0:8}
fi
if [ "${train_set} ${valid_set}" != "${all_sets}" ]; then
    pool_key=$(make_key "${pool_key}" "${score_key}" "${train_set} ${valid_set}" \
        "$(for dset in ${all_sets}; do
            [ ! -s "${confidence_dir}/${dset}/skipped" ] \
                || cut -d' ' -f1 "${confidence_dir}/${dset}/skipped"
        done)")
fi
# select_utterances LEAST ALL SUBSET
select_utterances() {
    local/subset_by_confidence.sh --min_confidence "$1" \
        "${confidence_dir}/$2/utt2confidence" "${data_feats}/$2" "${data_feats}/$3"
    mkdir -p "${confidence_dir}/$3"
    cp "${confidence_dir}/$2"/{frame_shift,frame_offset,sampling_rate,scorer} \
        "${confidence_dir}/$3"
    local file
    for file in confidence.scp utt2confidence utt2audio; do
        utils/filter_scp.pl "${data_feats}/$3/utt2spk" "${confidence_dir}/$2/${file}" \
            > "${confidence_dir}/$3/${file}"
    done
}
select_sets() {
    local all_train=${all_sets% *} all_valid=${all_sets#* }
    [ "${train_set}" = "${all_train}" ] \
        || select_utterances "${least}" "${all_train}" "${train_set}"
    [ "${valid_set}" = "${all_valid}" ] || select_utterances 0 "${all_valid}" "${valid_set}"
}
if runs 7 && [ "${train_set} ${valid_set}" != "${all_sets}" ]; then
    log "Stage 7: Utterances with a score${min_confidence:+, for training of ${least} or more}"
    run_once "${confidence_dir}" "select_${least}" "${pool_key}" select_sets
fi
if runs 7; then
    cat "${confidence_dir}/report/guidance.txt"
    log "Open ${PWD}/${confidence_dir}/report/report.html"
fi

# ========================== Pre-training ==========================

km_key=
if "${needs_labels}"; then
    km_key=$(make_key "${km_pool}" "${km_portion}" "${km_sum} ${km_layer}" \
        "$(python3 local/check_configs.py --frames "${ssl_config}")")
    # The plain name is the first one's: other data, frames, features or another portion get
    # their own.
    km_tag=kmeans_${nclusters}
    owner=${expdir}/${km_tag}/.owner
    if runs 8; then
        mkdir -p "${owner%/*}"
        (set -o noclobber; echo "${km_key}" > "${owner}") 2> /dev/null || true
    fi
    [ "$(cat "${owner}" 2> /dev/null)" = "${km_key}" ] || km_tag+=_${km_key:0:8}
    km_dir=${expdir}/${km_tag}
fi
kmeans() {
    local dset dir part=${train_set} clusters=${km_dir}/km_${nclusters}.mdl
    local log_file=${km_dir}/logdir/learn_kmeans.log km_ngpu=0
    [ -z "${km_model}" ] || km_ngpu=$((ngpu > 0))
    if [ ! -s "${clusters}" ]; then
        log "Learning ${nclusters} clusters from ${km_portion} of ${all_sets% *}..." \
            "log: '${log_file}'"
        # shellcheck disable=SC2086
        ${decode_cmd} --gpu "${km_ngpu}" "${log_file}" \
            python3 -m espnet_atm.bin.learn_kmeans --ngpu "${km_ngpu}" \
                --wav_scp "${data_feats}/${all_sets% *}/wav.scp" --km_path "${clusters}" \
                --num_clusters "${nclusters}" --portion "${km_portion}" ${km_opts} \
            || { tail -n 20 "${log_file}"; exit 1; }
    fi
    for dset in ${all_sets}; do
        dir=${km_dir}/${dset}
        # shellcheck disable=SC2086
        in_jobs label "${km_ngpu}" "${dset}" "${dir}" labels.scp --km_path "${clusters}" \
            --ssl_config "${ssl_config}" ${km_opts}
        cp "${first_job}/labeller" "${dir}"
        [ "${dset}" = "${all_sets% *}" ] || part=${valid_set}
        utils/filter_scp.pl --exclude "${dir}/labels.scp" "${data_feats}/${part}/wav.scp" \
            > "${dir}/difference"
        [ ! -s "${dir}/difference" ] || die "${part}: $(wc -l < "${dir}/difference")" \
            "utterances have no pseudo-labels: ${dir}/skipped says why"
    done
}
if runs 8 && ! "${needs_labels}"; then
    log "Stage 8: Nothing to do: the objective has no pseudo-labels"
elif runs 8; then
    log "Stage 8: Pseudo-labels: ${nclusters} clusters of" \
        "${km_model:+layer ${km_layer} of }${km_model:-MFCC}"
    km_opts=${km_args:---fs ${sampling_rate}}
    run_once "${km_dir}" kmeans "${km_key}" kmeans
fi

ssl_exp=${expdir}/ssl_${ssl_tag}_raw  # the name that ssl.sh gives it
ssl_settings=$(
    echo "max_epoch: ${ssl_epochs}"
    echo "--seed: ${seed:-$(of_config seed "${ssl_config}" 0)}"
    echo "unlabelled data, ${train_set} and ${valid_set}: ${pool_key}"
    echo "scores, by ${scorer_model}: ${score_key}"
    [ -z "${km_key}" ] || echo "pseudo-labels: ${km_key}"
    echo "--ssl_args: ${ssl_args}"
    [ "${num_splits_ssl}" -eq 1 ] || echo "--num_splits_ssl: ${num_splits_ssl}"
    [ -z "${init}" ] || echo "--init ${init}: ${init_key}"
    settings_of "${ssl_config}"
)
ssl_key=$(make_key "${ssl_settings}")

ssl_stage() {
    local _opts="--normalize utterance_mvn " labels scores mode splits=1
    [ -z "${init}" ] || _opts="--init_param ${init_dir}/model.pth "  # with its own normalization
    for mode in train valid; do
        if [ "${mode}" = valid ]; then
            scores=${confidence_dir}/${valid_set}
            ! "${needs_labels}" || labels=${km_dir}/${all_sets#* }
        elif [ "$1" -eq 7 ] && [ "${num_splits_ssl}" -gt 1 ]; then
            splits=${num_splits_ssl} scores=${split_dir} labels=${split_dir}
        else
            scores=${confidence_dir}/${train_set}
            ! "${needs_labels}" || labels=${km_dir}/${all_sets% *}
        fi
        if "${needs_labels}"; then
            _opts+="--${mode}_data_path_and_name_and_type "
            _opts+="${labels}/labels.scp,text,pseudo_labels "
        fi
        _opts+="--${mode}_data_path_and_name_and_type "
        _opts+="${scores}/confidence.scp,confidence,kaldi_ark "
    done
    [ -z "${ssl_max_epoch}" ] || _opts+="--max_epoch ${ssl_max_epoch} "
    [ -z "${seed}" ] || _opts+="--seed ${seed} "
    ssl_sh --skip_data_prep true --stage "$1" --stop_stage "$1" --expdir "${ssl_view}" \
        --train_config "${ssl_config}" --token_list none --num_splits_ssl "${splits}" \
        --ssl_args "${_opts} ${ssl_args}"
}
# What ssl.sh calls its expdir: the statistics of these data and settings, which no other run
# changes, with a link to the run's folder.
splits_part=
[ "${num_splits_ssl}" -eq 1 ] || splits_part="${num_splits_ssl} ${score_key}"
stats_key=$(make_key "${pool_key}" "${km_key}" "${ssl_args}" "${splits_part}" \
    "$(python3 local/check_configs.py --front_end "${ssl_config}")")
ssl_stats=${expdir}/ssl_stats_raw
ssl_view=${ssl_stats}/${stats_key:0:8}
stats_step=collect_stats_${stats_key:0:8}
# All that is made of statistics without a global normalization is speech_shape, which says
# what utt2num_samples says, where stages 3 and 4 have left that: nothing is decoded.
collect_stats() {
    local dset dir mode
    for dset in "${train_set}" "${valid_set}"; do
        dir=${data_feats}/${dset}
        if [ ! -s "${dir}/utt2num_samples" ] \
            || ! cmp -s <(cut -d' ' -f1 "${dir}/wav.scp") <(cut -d' ' -f1 "${dir}/utt2num_samples"); then
            log "${dir} has no utt2num_samples of its utterances: their audio is read"
            ssl_stage 6
            return
        fi
    done
    for mode in train valid; do
        [ "${mode}" = train ] && dset=${train_set} || dset=${valid_set}
        dir=${ssl_view}/ssl_stats_raw/${mode}
        mkdir -p "${dir}"
        cp "${data_feats}/${dset}/utt2num_samples" "${dir}/speech_shape"
    done
}
if runs 9; then
    log "Stage 9: Lengths of the utterances"
    scored
    if "${needs_labels}" && [ "$(cat "${km_dir}/.steps/kmeans.done" 2> /dev/null)" != "${km_key}" ]
    then
        die "${km_dir} has no pseudo-labels of these data: run stage 8 first"
    fi
    run_once "${ssl_stats}" "${stats_step}" "${stats_key}" collect_stats
    for mode in train valid; do  # the last ones, for who looks for them where ssl.sh has them
        ln -sfn "${stats_key:0:8}/ssl_stats_raw/${mode}" "${ssl_stats}/${mode}"
    done
fi

# ssl.sh splits audio and lengths alone; where its .done is, it takes what is there.
split_dir=${ssl_view}/ssl_stats_raw/splits${num_splits_ssl}
split_lists() {
    local from=${confidence_dir}/${train_set} file
    local lists=("${data_feats}/${train_set}/wav.scp" "${from}/confidence.scp"
        "${ssl_view}/ssl_stats_raw/train/speech_shape")
    rm -rf "${split_dir}"
    mkdir -p "${split_dir}/.lists"
    if "${needs_labels}"; then
        utils/filter_scp.pl "${lists[0]}" "${km_dir}/${all_sets% *}/labels.scp" \
            > "${split_dir}/.lists/labels.scp"
        lists+=("${split_dir}/.lists/labels.scp")
        cp "${km_dir}/${all_sets% *}/labeller" "${split_dir}"
    fi
    ${python} -m espnet2.bin.split_scps --scps "${lists[@]}" --num_splits "${num_splits_ssl}" \
        --output_dir "${split_dir}"
    rm -r "${split_dir}/.lists"
    cp "${from}"/{frame_shift,frame_offset,sampling_rate,scorer} "${split_dir}"
    for file in utt2confidence utt2audio; do
        ln -s "$(realpath "${from}/${file}")" "${split_dir}/${file}"
    done
    touch "${split_dir}/.done"
}
pretrain() {
    ln -sfn "../../${ssl_exp##*/}" "${ssl_view}/${ssl_exp##*/}"
    ssl_stage 7
}
if runs 10; then
    log "Stage 10: Pre-train: ${ssl_tag}"
    scored
    [ "$(cat "${ssl_stats}/.steps/${stats_step}.done" 2> /dev/null)" = "${stats_key}" ] \
        || die "${ssl_stats} has no statistics of these data and settings: run stage 9 first"
    if [ "${num_splits_ssl}" -gt 1 ]; then
        run_once "${ssl_stats}" "split_${num_splits_ssl}_${stats_key:0:8}" "${stats_key}" split_lists
    fi
    run_once "${ssl_exp}" train "${ssl_key}" pretrain "${inference_ssl_model}" "${ssl_settings}"
fi

# ========================== Fine-tuning and evaluation ==========================

# use_finetuning [SET]: the model that is fine-tuned on it.
use_finetuning() {
    use_labelled "$@"
    asr_run=$(asr_name "$@")
    asr_tag=${asr_run}${seed_part}
    asr_exp=${expdir}/asr_${asr_tag}
    asr_settings=$(
        labelled_settings
        echo "--seed: ${seed:-$(of_config seed "${asr_config}" 0)}"
        echo "pre-trained model, ${inference_ssl_model} of ${ssl_tag}: ${ssl_key}"
        [ "${head_epochs}" -eq 0 ] || echo "--head_args: ${head_args}"
        settings_of "${asr_config}"
    )
    finetune_settings=$(
        echo "max_epoch: $((asr_epochs - head_epochs))"
        echo "--head_epochs: ${head_epochs}"
        echo "${asr_settings}"
    )
    finetune_key=$(make_key "${finetune_settings}")
}
export_ssl() {
    python3 -m espnet_atm.bin.export_ssl \
        --ssl_train_config "${ssl_exp}/config.yaml" \
        --ssl_model_file "${ssl_exp}/${inference_ssl_model}" \
        --output_dir "${ssl_exp}/export" ${init:+--format huggingface}
}
finetune() {
    local config=${expdir}/conf/asr_${asr_tag}.yaml pretrained seed_arg=${seed:+--seed ${seed}}
    local frozen=
    export_ssl
    if [ -n "${init}" ]; then
        python3 local/make_asr_config.py --asr_config "${asr_config}" \
            --huggingface "${ssl_exp}/export" --output "${config}"
        pretrained=
        frozen=frontend
    else
        _pth=$(basename "$(readlink -f "${ssl_exp}/${inference_ssl_model}")")
        pretrained=$(python3 local/make_asr_config.py --asr_config "${asr_config}" \
            --ssl_config "${ssl_exp}/export/config.yaml" \
            --ssl_model "${ssl_exp}/export/${_pth}" --output "${config}")
    fi
    if [ "${head_epochs}" -gt 0 ]; then
        local part
        for part in ${pretrained}; do
            frozen+=" ${part##*:}"
        done
        train_head() {
            asr_config=${config} asr_max_epoch=${head_epochs} \
                asr_args="${asr_args} ${seed_arg} ${head_args} --freeze_param ${frozen}" \
                asr_sh --stage 11 --stop_stage 11 --asr_tag "${asr_tag}_head" \
                    --pretrained_model "${pretrained}"
        }
        local head_settings
        head_settings="max_epoch: ${head_epochs}"$'\n'${asr_settings}
        run_once "${asr_exp}_head" train "$(make_key "${head_settings}")" train_head latest.pth \
            "${head_settings}"
        pretrained=${asr_exp}_head/latest.pth
    fi
    asr_config=${config} asr_max_epoch=$((asr_epochs - head_epochs)) \
        asr_args="${asr_args} ${seed_arg}" \
        asr_sh --stage 11 --stop_stage 11 --asr_tag "${asr_tag}" \
            --pretrained_model "${pretrained}"
}
if runs 11; then
    need 10 "${ssl_exp}" "${ssl_key}" "${inference_ssl_model}"
    for name in ${finetune_sets:-""}; do
        use_finetuning ${name}
        log "Stage 11: Export; fine-tune on ${asr_train_set}"
        run_once "${asr_stats}" tokens_and_stats "${tokens_key}" tokens_and_stats
        run_once "${asr_exp}" train "${finetune_key}" finetune "${inference_asr_model}" \
            "${finetune_settings}"
    done
fi

# asr.sh scores with sclite, from Debian's sctk; local/results.py has its own way without.
last_asr_stage=12
! command -v sclite > /dev/null || last_asr_stage=13
decode() {
    inference_config=${decode_config} asr_sh --stage 12 --stop_stage "${last_asr_stage}" \
        --asr_tag "${decoded_tag}" --test_sets "${dset}"
}
# decode_once RUN SEED KEY CONFIG: decode the test sets with a model, into RESULTS.md; sets
# "decoded", how local/results.py is told of it.
decode_once() {
    decoded_tag=$1
    [ "$1" = "${scorer_run}" ] || decoded_tag+=${seed_part}
    decode_config=${inference_config:-conf/decode_ctc.yaml}
    if [ -z "${inference_config}" ] && is_transducer "$4"; then
        decode_config=conf/decode_rnnt.yaml
    fi
    for dset in ${test_sets}; do
        run_once "${expdir}/asr_${decoded_tag}" "decode${decode_part}_${dset}" \
            "$(make_key "$3" "${inference_asr_model}" "$(cat "${decode_config}")" \
                "$(sets_key "${dset}")")" decode
    done
    decoded="$1${decode_part},$2,${expdir}/asr_${decoded_tag}/decode${decode_part}"
    results --put "${decoded}"
}
results() {
    # shellcheck disable=SC2086
    python3 local/results.py --corpus "${corpus}" --results RESULTS.md \
        --data_dir "${data_feats}" "$@" -- ${test_sets}
}
# rerun WITHOUT OPTION...: this run's command, less options that WITHOUT, a pattern, matches,
# with others.
rerun() {
    local words=(./run.sh) without=$1 i
    shift
    for ((i = 0; i < ${#given_options[@]}; i += 2)); do
        [[ $(option_name "${given_options[i]}") =~ ^(stage|stop_stage|${without})$ ]] \
            || words+=("${given_options[@]:i:2}")
    done
    printf '%q ' "${words[@]}"
    echo "$*"
}
what_next() {
    local guiding='masker|strategy|sharpness|mask_ratio'
    if grep -q '^ *masker: atm' "${ssl_config}"; then
        # Without weights and a selection, scores have no part in random masks.
        grep -qE '^ *loss_scale: (utterance|frame)' "${ssl_config}" || [ -n "${min_confidence}" ] \
            || guiding+='|score_opts|speech_gate'
        log "  random masks, the baseline:  $(rerun "${guiding}" --masker random)"
        if ! "${speech_gate}" && grep -qE '^(warning|advice):' "${confidence_dir}/report/guidance.txt"; then
            log "  a scorer that knows noise:   $(rerun speech_gate --speech_gate true)"
        fi
    else
        log "  guided masks:                $(rerun 'masker|mask_ratio' --masker atm)"
    fi
    log "  chance, by another seed:     $(rerun seed --seed $((${seed:-0} + 1)))"
}
if runs 12; then
    log "Stage 12: Decode and score ${test_sets}"
    shown=()
    # What pre-training has to beat: the same model without it.
    if "${own_scorer}"; then
        use_labelled
        decode_once "${scorer_run}" "$(of_config seed "${scorer_train_config}" 0)" \
            "${scorer_key}" "${scorer_train_config}"
        shown+=(--baseline "${decoded}" --which)
        if [ -z "${finetune_sets}" ] && [ "${asr_config}" = "${scorer_train_config}" ]; then
            shown+=("the same model and labelled data without pre-training$(
                [ "${head_epochs}" -eq 0 ] || echo ", no epochs of it frozen")")
        else
            shown+=("without pre-training, trained on ${scorer_train_set} with ${scorer_train_config}")
        fi
    fi
    for name in ${finetune_sets:-""}; do
        use_finetuning ${name}
        need 11 "${asr_exp}" "${finetune_key}" "${inference_asr_model}"
        decode_once "${asr_run}" "${seed:-$(of_config seed "${ssl_config}" 0)}" \
            "${finetune_key}" "${asr_config}"
        shown+=(--show "${decoded}")
    done
    log "The results of this run:"
    results "${shown[@]}"
    log "All rows: ${PWD}/RESULTS.md"
    [ ! -s "${confidence_dir}/report/report.html" ] \
        || log "Confidence report: ${PWD}/${confidence_dir}/report/report.html"
    log "Curves of pre-training: tensorboard --logdir ${PWD}/${ssl_exp}/tensorboard"
    log "What to try next:"
    what_next
fi

if runs 13 && ! "${skip_packing}"; then
    ssl_sh --skip_data_prep true --skip_train true --skip_packing false \
        --stage 8 --stop_stage 8 --train_config "${ssl_config}" \
        --inference_ssl_model "${inference_ssl_model}"
fi
if runs 14 && ! "${skip_upload_hf}"; then
    ssl_sh --skip_data_prep true --skip_train true --skip_upload_hf false \
        --stage 9 --stop_stage 9 --train_config "${ssl_config}" \
        --hf_repo "${hf_repo}" --inference_ssl_model "${inference_ssl_model}"
fi

log "Successfully finished. [elapsed=${SECONDS}s]"
