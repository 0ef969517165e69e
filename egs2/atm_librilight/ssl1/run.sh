#!/usr/bin/env bash
# The corpora's settings, which are defaults: every option of atm.sh can be given here too and wins.
set -e
set -u
set -o pipefail

. local/options.sh
corpus=$(given corpus mini "$@")

opts=()
case "${corpus}" in
    mini) opts+=(--ssl_max_epoch 6 --asr_max_epoch 15) ;;
    fillets) opts+=(--ssl_max_epoch 7 --asr_max_epoch 14) ;;
    librilight)
        # Segments have 64 s at most. The paper's sets, word pieces and sizes.
        opts+=(--max_wav_duration 65 --token_type bpe --nbpe 1024)
        opts+=(--finetune_sets librispeech_100)
        [ -n "$(given train_config "" "$@")$(given init "" "$@")" ] || opts+=(--objective w2v_bert --model_size l)
        # Of the scorer, which is no larger than L, and of fine-tuning, which takes front end
        # and encoder from pre-training.
        asr_config=conf/tuning/train_asr_conformer_l.yaml
        model_size=$(given model_size l "$@")  # given and empty is mini: atm.sh's default
        [ "${model_size:-mini}" != mini ] || asr_config=${asr_config/_l/_mini}
        opts+=(--asr_config "${asr_config}")
        # The encoder is frozen for the first eighth of fine-tuning, as in wav2vec 2.0's on
        # 100 h (10k of 80k updates; the paper does not say), at the config's learning rate.
        asr_config=$(given asr_config "${asr_config}" "$@")
        epochs=$(given asr_max_epoch "" "$@")
        if [ -z "${epochs}" ] && [ -r "${asr_config}" ]; then
            epochs=$(awk '/^max_epoch:/ {print $2}' "${asr_config}")
        fi
        # What is no number, and no file, is refused by atm.sh.
        [[ ${epochs:-40} =~ ^[0-9]{1,9}$ ]] \
            && opts+=(--head_epochs $((10#${epochs:-40} / 8)) --head_args "--scheduler none")
        # Of 60,000 h, 120 h, whose MFCC fit a machine's memory (7 GB).
        opts+=(--km_portion 0.002)
        ;;
esac

./atm.sh --corpus "${corpus}" ${opts[@]+"${opts[@]}"} --as_defaults true "$@"
