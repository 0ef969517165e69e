#!/usr/bin/env bash
# The corpora's settings; every option of atm.sh can be given here too and wins.
set -e
set -u
set -o pipefail

args=("$@")
# given NAME DEFAULT: the value of an option on the command line.
given() {
    local i value=$2
    for ((i = 0; i < ${#args[@]}; i++)); do
        [ "${args[i]}" != "--$1" ] || value=${args[i + 1]:-}
    done
    echo "${value}"
}
corpus=$(given corpus mini)

opts=()
case "${corpus}" in
    mini) opts+=(--ssl_max_epoch 6 --asr_max_epoch 15) ;;
    fillets) opts+=(--ssl_max_epoch 7 --asr_max_epoch 14) ;;
    librilight)
        # Segments have 64 s at most. The paper's sets, word pieces and sizes.
        opts+=(--max_wav_duration 65 --token_type bpe --nbpe 1024)
        opts+=(--finetune_sets librispeech_100)
        [ -n "$(given train_config "")" ] || opts+=(--objective w2v_bert --model_size l)
        # Of the scorer, which is no larger than L, and of fine-tuning, which takes front end
        # and encoder from pre-training.
        asr_config=conf/tuning/train_asr_conformer_l.yaml
        [ "$(given model_size l)" != mini ] || asr_config=${asr_config/_l/_mini}
        opts+=(--asr_config "${asr_config}")
        # The encoder is frozen for the first eighth of fine-tuning, as in wav2vec 2.0's on
        # 100 h (10k of 80k updates; the paper does not say), at the config's learning rate.
        asr_config=$(given asr_config "${asr_config}")
        epochs=$(awk '/^max_epoch:/ {print $2}' "${asr_config}")
        epochs=$(given asr_max_epoch "${epochs:-40}")
        opts+=(--head_epochs $((epochs / 8)) --head_args "--scheduler none")
        # Of 60,000 h, 120 h, whose MFCC fit a machine's memory (7 GB).
        opts+=(--km_portion 0.002)
        ;;
esac

./atm.sh --corpus "${corpus}" "${opts[@]}" "$@"
