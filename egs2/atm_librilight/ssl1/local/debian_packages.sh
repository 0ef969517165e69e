#!/usr/bin/env bash
# Download and unpack Debian packages of audio, without root: into <folder>/<package>, complete or absent.
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

from=downloads  # Or a folder with the .deb files.
name=FILLETS    # The variable of db.sh that says so.

help_message="Usage: $0 [--from DIR] [--name VARIABLE] <folder> <package>..."

log "$0 $*"
. local/parse_options.sh
if [ $# -lt 2 ]; then
    log "${help_message}"
    exit 2
fi
folder=$1
shift
packages=$*

# Unpacks a package into a directory that is complete or absent.
unpack() {
    local deb=$1 package=$2
    if ! command -v dpkg-deb > /dev/null; then
        log "Error: no dpkg-deb here: unpack ${deb} elsewhere and set ${name} in db.sh to the folder"
        exit 1
    fi
    rm -rf "${folder}/.${package}.partial"
    dpkg-deb -x "${deb}" "${folder}/.${package}.partial"
    mv "${folder}/.${package}.partial" "${folder}/${package}"
}

# Downloads a package into the current directory. Needs no root.
download() {
    local package=$1
    if ! command -v apt-get > /dev/null; then
        log "Error: no apt-get here: get the Debian packages ${packages} and set ${name} in db.sh to their folder"
        exit 1
    fi
    apt-get download "${package}" && return
    if [ "$(id -u)" -eq 0 ]; then
        log "${package}: not found in the package lists: updating them"
        apt-get update && apt-get download "${package}" && return
    fi
    log "Error: 'apt-get download ${package}' failed. If the package lists are missing, run 'sudo apt-get update' and" \
        "try again; or set ${name} in db.sh to a folder with the packages ${packages} (.deb files or unpacked)."
    exit 1
}

mkdir -p "${folder}"
for package in ${packages}; do
    [ ! -d "${folder}/${package}" ] || continue
    if [ "${from}" = downloads ]; then
        log "${package}: downloading"
        (cd "${folder}"; download "${package}")
        deb=$(compgen -G "${folder}/${package}_*.deb" | sort -V | tail -n 1)
        unpack "${deb}" "${package}"
        rm -f "${deb}"
    else
        # Of several versions the newest, which is not the last in the alphabet.
        deb=$(compgen -G "${from}/${package}_*.deb" | sort -V | tail -n 1 || true)
        if [ -z "${deb}" ]; then
            log "Error: no ${package}_*.deb in ${name}=${from}"
            exit 1
        fi
        unpack "${deb}" "${package}"
    fi
done
