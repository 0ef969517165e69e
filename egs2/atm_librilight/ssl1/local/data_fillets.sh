#!/usr/bin/env bash
# Real Dutch and Czech speech: the dialogues of the game Fish Fillets NG (GPL-2), from its Debian packages.
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
download_dir=downloads/fillets
levels=0            # Use only this many game levels (0: all).

log "$0 $*"
. local/parse_options.sh

if [ $# -ne 0 ]; then
    log "Error: No positional arguments are required."
    exit 2
fi

. ./path.sh
. ./cmd.sh
. ./db.sh

packages="fillets-ng-data fillets-ng-data-nl fillets-ng-data-cs"
staging=${data_dir}/.fillets.staging

if [ -z "${FILLETS:-}" ]; then
    log "Error: set FILLETS in db.sh: 'downloads', or a folder with the packages ${packages} (.deb files or unpacked)"
    exit 1
fi

roots=
if [ "${FILLETS}" != downloads ] && ! compgen -G "${FILLETS}/fillets-ng-data*.deb" > /dev/null; then
    roots=${FILLETS}
else
    # shellcheck disable=SC2086
    local/debian_packages.sh --from "${FILLETS}" --name FILLETS "${download_dir}" ${packages}
    for package in ${packages}; do
        roots+=" ${download_dir}/${package}"
    done
fi

# shellcheck disable=SC2086
python3 local/fillets.py \
    --roots ${roots} \
    --data_dir "${data_dir}" \
    --staging_dir "${staging}" \
    --download_dir "${download_dir}" \
    --levels "${levels}" \
    --nj "${nj}"
local/publish_data.sh "${staging}" "${data_dir}" fillets

log "Successfully finished. [elapsed=${SECONDS}s]"
