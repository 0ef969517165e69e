#!/usr/bin/env bash
# The corpora's settings; every option of atm.sh can be given here too and wins.
set -e
set -u
set -o pipefail

corpus=mini
args=("$@")
for ((i = 0; i < ${#args[@]}; i++)); do
    [ "${args[i]}" != --corpus ] || corpus=${args[i + 1]:-}
done

opts=()
case "${corpus}" in
    mini) opts+=(--ssl_max_epoch 6 --asr_max_epoch 15) ;;
    fillets) opts+=(--ssl_max_epoch 7 --asr_max_epoch 14) ;;
    librilight)
        # Segments have 64 s at most. The paper's sets, word pieces and sizes.
        opts+=(--max_wav_duration 65 --token_type bpe --nbpe 1024)
        opts+=(--finetune_sets librispeech_100)
        given=" $* "
        [[ ${given} = *" --train_config "* ]] || opts+=(--objective w2v_bert --model_size l)
        opts+=(--asr_config conf/tuning/train_asr_conformer_l.yaml)
        ;;
esac

./atm.sh --corpus "${corpus}" "${opts[@]}" "$@"
