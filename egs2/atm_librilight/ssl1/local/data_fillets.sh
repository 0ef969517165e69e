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

# Unpacks a package into a directory that is complete or absent.
unpack() {
    local deb=$1 package=$2
    if ! command -v dpkg-deb > /dev/null; then
        log "Error: no dpkg-deb here: unpack ${deb} elsewhere and set FILLETS in db.sh to the folder"
        exit 1
    fi
    rm -rf "${download_dir}/.${package}.partial"
    dpkg-deb -x "${deb}" "${download_dir}/.${package}.partial"
    mv "${download_dir}/.${package}.partial" "${download_dir}/${package}"
}

# Downloads a package into the current directory. Needs no root.
download() {
    local package=$1
    if ! command -v apt-get > /dev/null; then
        log "Error: no apt-get here: get the Debian packages ${packages} and set FILLETS in db.sh to their folder"
        exit 1
    fi
    apt-get download "${package}" && return
    if [ "$(id -u)" -eq 0 ]; then
        log "${package}: not found in the package lists: updating them"
        apt-get update && apt-get download "${package}" && return
    fi
    log "Error: 'apt-get download ${package}' failed. If the package lists are missing, run 'sudo apt-get update' and" \
        "try again; or set FILLETS in db.sh to a folder with the packages ${packages} (.deb files or unpacked)."
    exit 1
}

if [ -z "${FILLETS:-}" ]; then
    log "Error: set FILLETS in db.sh: 'downloads', or a folder with the packages ${packages} (.deb files or unpacked)"
    exit 1
fi

roots=
mkdir -p "${download_dir}"
if [ "${FILLETS}" != downloads ] && ! compgen -G "${FILLETS}/fillets-ng-data*.deb" > /dev/null; then
    roots=${FILLETS}
else
    for package in ${packages}; do
        if [ ! -d "${download_dir}/${package}" ]; then
            if [ "${FILLETS}" = downloads ]; then
                log "${package}: downloading"
                (cd "${download_dir}"; download "${package}")
                deb=$(compgen -G "${download_dir}/${package}_*.deb" | sort -V | tail -n 1)
                unpack "${deb}" "${package}"
                rm -f "${deb}"
            else
                # Of several versions the newest, which is not the last in the alphabet.
                deb=$(compgen -G "${FILLETS}/${package}_*.deb" | sort -V | tail -n 1 || true)
                if [ -z "${deb}" ]; then
                    log "Error: no ${package}_*.deb in FILLETS=${FILLETS}"
                    exit 1
                fi
                unpack "${deb}" "${package}"
            fi
        fi
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
