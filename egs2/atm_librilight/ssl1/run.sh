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
esac

./atm.sh --corpus "${corpus}" "${opts[@]}" "$@"
