#!/usr/bin/env bash
# Run the recipe, setting everything up on first use:   ./run.sh --corpus mini
# Options are those of egs2/atm_librilight/ssl1/run.sh; tools/setup.sh says which environment variables it heeds.
# Relative paths are from the folder that this is called in: --expdir and --dumpdir always, configs and models when
# they are there; otherwise (conf/tuning/x.yaml) from the recipe's folder. Called in this folder, outputs are in the
# recipe's folder, and of two files of one name the recipe's is taken.
set -euo pipefail

root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
recipe=${root}/egs2/atm_librilight/ssl1
. "${recipe}/local/options.sh"

case "$(pwd -P)" in
    "${root}" | "${recipe}") at_home=true ;;
    *) at_home=false ;;
esac

# from_here OPTION VALUE: the value as it must be in the recipe's folder.
from_here() {
    local value=$2 found=${PWD}/$2
    case "${value}" in
        "" | /* | --*) printf '%s\n' "${value}"; return ;;
    esac
    case "$(option_name "$1")" in
        expdir | dumpdir) "${at_home}" || value=${found} ;;
        init | scorer_tag | km_model)
            if [ -e "${found}" ] && ! { "${at_home}" && [ -e "${recipe}/${value}" ]; }; then
                value=${found}
            fi
            ;;
        train_config | asr_config | scorer_train_config | scorer_config | scorer_model | inference_config \
            | config)
            if [ -f "${found}" ] && ! { "${at_home}" && [ -e "${recipe}/${value}" ]; }; then
                value=${found}
            fi
            ;;
    esac
    printf '%s\n' "${value}"
}

options=()
while [ $# -gt 0 ]; do
    options+=("$1")
    if [[ $1 = --* ]] && [ $# -gt 1 ]; then
        options+=("$(from_here "$1" "$2")")
        shift
    fi
    shift
done

"${root}/tools/setup.sh"
cd -- "${recipe}"
exec ./run.sh ${options[@]+"${options[@]}"}
