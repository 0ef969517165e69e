#!/usr/bin/env bash
# Set bash to 'debug' mode, it will exit on :
# -e 'error', -u 'undefined variable', -o ... 'error in pipeline', -x 'print commands',
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

help_message=$(cat << EOF
Usage: $0 [--corpus <corpus>] [options of local/data_<corpus>.sh]

Prepares data/<corpus>_{unlabelled,unlabelled_dev,train,dev,test_*}.

Options:
    --corpus    # One of the local/data_<corpus>.sh (default="mini").
    --nj        # The number of parallel jobs (default="2").
    --data_dir  # Where the data directories are written (default="data").
EOF
)

corpus=mini

log "$0 $*"
# Only --corpus is ours: every corpus declares its own options (local/parse_options.sh would refuse them here).
opts=()
while [ $# -gt 0 ]; do
    case "$1" in
        --help|-h)
            echo "${help_message}"
            exit 0 ;;
        --corpus)
            if [ $# -lt 2 ]; then
                log "Error: --corpus needs a value."
                exit 2
            fi
            corpus=$2
            shift 2 ;;
        *)
            opts+=("$1")
            shift ;;
    esac
done

if [ ! -f "local/data_${corpus}.sh" ]; then
    corpora=$(for f in local/data_*.sh; do f=${f#local/data_}; echo -n "${f%.sh} "; done)
    log "Error: no data preparation for --corpus ${corpus} (local/data_${corpus}.sh): choose one of: ${corpora}"
    exit 2
fi

"local/data_${corpus}.sh" ${opts[@]+"${opts[@]}"}
