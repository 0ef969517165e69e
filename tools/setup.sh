#!/usr/bin/env bash
# Set up everything that the recipe and the tests need; run.sh and run_tests.sh call it each time.
#
#   tools/setup.sh
#
# Makes a Python environment with one release of ESPnet and setup.py's dependencies, fetches the recipe tree of the
# same release, and writes into this clone what recipes look for: egs2/TEMPLATE (a link), tools/activate_python.sh and
# tools/extra_path.sh. Nothing is done twice: once set up, a further run only checks that.
#
# Environment variables
#   PYTHON        the Python (3.12 or 3.13) to make the environment with; found when not given
#   ATM_VENV      where the environment is; <clone>/.venv when not given. Clones may share one.
#   ESPNET_ROOT   an ESPnet checkout to take recipes and Python modules from, in place of the fetched release
#   ATM_DISK_GB   free disk space to ask for before the first installation
set -euo pipefail

ESPNET_VERSION=202611
ESPNET_SHA256=eb5816c4d2e4a18eaa2afacc2f8cf74f93e5534dec0fdcee0b2c89b6f7ddd1fd
DISK_GB=${ATM_DISK_GB:-10}

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
venv=$(realpath -m -- "${ATM_VENV:-${root}/.venv}")
tree=${venv}/espnet-${ESPNET_VERSION}
owned=${venv}/.atm_owned            # we made this folder, so we may make it anew
installing=${venv}/.atm_installing  # pip is changing it; still there afterwards when pip was cut off
stamp=${venv}/.atm_installed        # written last; holds what the installation was made from

say() { echo "setup.sh: $*"; }
die() { echo "setup.sh: $*" >&2; exit 1; }

# Not for the environment made here: they would hide what is missing from it.
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1


# --- the state of the environment -------------------------------------------------------------------------------------

fingerprint() {
    echo "espnet ${ESPNET_VERSION}"
    sha256sum <"${root}/setup.py"
}

python_runs() {
    "${venv}/bin/python" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info < (3, 14))' >/dev/null 2>&1
}

packages_ready() {
    [ -f "${stamp}" ] && [ ! -e "${installing}" ] && [ "$(<"${stamp}")" = "$(fingerprint)" ] && python_runs
}

tree_ready() {
    [ -n "${ESPNET_ROOT:-}" ] || [ -d "${tree}" ]  # the tree appears whole or not at all
}


# --- who may do what --------------------------------------------------------------------------------------------------

user=$(id -un 2>/dev/null || id -u)

# The innermost folder of the path "$1" that this user can see.
innermost() {
    local path=$1
    while [ ! -e "${path}" ]; do
        path=$(dirname -- "${path}")
    done
    printf '%s\n' "${path}"
}

owned_by() { stat -c 'it is of %U:%G, mode %a' -- "$1"; }

# An environment of others may be read only; then it has to be complete.
check_readable() {
    local path
    for path in "$(innermost "${venv}")" "${venv}/bin" "${venv}/lib" "${stamp}" "${tree}"; do
        # Above the environment, it is enough to be let through.
        if { [ -d "${path}" ] && [ ! -x "${path}" ]; } \
            || { [ -e "${venv}" ] && [ -e "${path}" ] && [ ! -r "${path}" ]; }; then
            die "${path} may not be entered and read by the user ${user} ($(owned_by "${path}")).
Have it opened to you (chmod -R a+rX ${path}), or choose another folder with ATM_VENV=/path/to/folder."
        fi
    done
}

check_writable() {
    local path why="is not there"
    [ ! -e "${venv}" ] || why="is not set up for this clone"
    if [ -f "${stamp}" ] && [ ! -e "${installing}" ] && [ "$(<"${stamp}")" = "$(fingerprint)" ]; then
        why="lacks the recipes of ESPnet ${ESPNET_VERSION}"
        python_runs || why="has a Python that does not run here ($(readlink -m -- "${venv}/bin/python"))"
    fi
    for path in "$(innermost "${venv}")" "${venv}/bin" "${venv}/lib"; do
        [ ! -e "${path}" ] || [ -w "${path}" ] \
            || die "${venv} ${why}, and ${path} may not be written to by the user ${user} ($(owned_by "${path}")).
Have it set up by who may, or choose another folder with ATM_VENV=/path/to/folder."
    done
}


# --- Python -----------------------------------------------------------------------------------------------------------

# Prints why the Python "$1" cannot be used; nothing when it can. It has to be run to know: a pyenv shim named
# python3.12 may be on PATH with no Python 3.12 behind it.
python_problem() {
    "$1" - 2>/dev/null <<'PY' || echo "it does not run ($("$1" -c '' 2>&1 | head -n 1))"
import sys
import sysconfig

version = "%d.%d.%d" % sys.version_info[:3]
if not (3, 12) <= sys.version_info[:2] <= (3, 13):
    print("it is Python " + version)
elif sysconfig.get_config_var("Py_GIL_DISABLED"):
    print("it is a free-threaded Python " + version)
else:
    try:
        import ensurepip
        import venv
    except ImportError as e:
        print("it is Python %s without %s (Debian: apt install python%d.%d-venv)" % ((version, e.name) + sys.version_info[:2]))
PY
}

find_python() {  # sets $python
    local candidate problem rejected=""
    if [ -n "${PYTHON:-}" ]; then
        problem=$(python_problem "${PYTHON}")
        [ -z "${problem}" ] || die "PYTHON=${PYTHON} cannot be used: ${problem}; ESPnet ${ESPNET_VERSION} needs Python 3.12 or 3.13."
        python=${PYTHON}
        return
    fi
    local candidates=()
    mapfile -t candidates < <(type -aP python3.12 python3.13 python3 || true)
    candidates+=("${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[23]*/bin/python3)
    if command -v uv >/dev/null; then
        candidates+=("$(uv python find 3.12 2>/dev/null || true)")
    fi
    for candidate in "${candidates[@]}"; do
        [ -x "${candidate}" ] || continue
        problem=$(python_problem "${candidate}")
        if [ -z "${problem}" ]; then
            python=${candidate}
            return
        fi
        rejected+="  ${candidate}: ${problem}"$'\n'
    done
    if command -v uv >/dev/null; then
        say "no Python 3.12 or 3.13 found; installing 3.12 with uv"
        if uv python install 3.12 && candidate=$(uv python find 3.12) && [ -z "$(python_problem "${candidate}")" ]; then
            python=${candidate}
            return
        fi
    fi
    die "no usable Python 3.12 or 3.13 found, which ESPnet ${ESPNET_VERSION} needs.
${rejected:+Looked at:
${rejected}}Do one of these and run this again:
  apt install python3.12 python3.12-venv     (where the distribution has it)
  pyenv install 3.12
  uv python install 3.12
  PYTHON=/path/to/python3.12 ./run.sh        (a Python that is somewhere else)"
}


# --- installation -----------------------------------------------------------------------------------------------------

check_disk() {  # about 6.5 GB stay; the rest is what pip downloads and then removes
    local free_kb
    free_kb=$(df -k --output=avail -- "${venv}" | tail -n 1)
    if [ "${free_kb}" -lt $((DISK_GB * 1024 * 1024)) ]; then
        die "${venv}: the installation needs ${DISK_GB} GB of free disk and there are $((free_kb / 1024 / 1024)) GB.
Make room, or choose another disk with ATM_VENV=/path/to/folder."
    fi
}

# Leaves a sound environment in $venv: the one there is, or a new one.
make_venv() {
    if [ ! -e "${installing}" ] && python_runs && "${venv}/bin/python" -m pip --version >/dev/null 2>&1; then
        [ -f "${stamp}" ] || check_disk
        return
    fi
    if [ -n "$(ls -A -- "${venv}" 2>/dev/null)" ] && [ ! -f "${owned}" ]; then
        die "${venv} holds something else than a working environment of Python 3.12 or 3.13, and was not made here.
Move it away, or choose another folder with ATM_VENV=/path/to/folder."
    fi
    find_python
    if [ -e "${venv}/bin" ]; then
        say "${venv} is from a set-up that was cut off or no longer works; making it anew"
    fi
    mkdir -p -- "${venv}"
    find "${venv}" -mindepth 1 -maxdepth 1 ! -name "${owned##*/}" -exec rm -rf -- {} +
    touch -- "${owned}"
    check_disk
    say "making a Python environment in ${venv} with ${python}"
    "${python}" -m venv "${venv}" || die "${python} could not make an environment in ${venv} (see above)."
}

install_packages() {
    local site before status=0
    make_venv
    site=$("${venv}/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    before=$(stat -c %y -- "${site}")
    # pip keeps its downloads in $TMPDIR until the end: /tmp is often too small for them.
    mkdir -p -- "${venv}/tmp"
    touch -- "${installing}"
    say "installing ESPnet ${ESPNET_VERSION} and setup.py's other dependencies; the first time that takes some minutes"
    # The package itself goes in editable. Which clone's espnet_atm is imported does not depend on it:
    # tools/activate_python.sh puts its own clone on PYTHONPATH, which goes before.
    (
        cd -- "${root}" \
            && TMPDIR=${venv}/tmp "${venv}/bin/python" -m pip install -e '.[test]' "espnet==${ESPNET_VERSION}"
    ) || status=$?
    rm -rf -- "${venv}/tmp"
    if [ "${status}" -ne 0 ]; then
        [ "$(stat -c %y -- "${site}")" != "${before}" ] || rm -f -- "${installing}"  # untouched, as good as before
        die "pip could not install ESPnet ${ESPNET_VERSION} and the other dependencies in setup.py (see above).
Check the network, the proxy (HTTPS_PROXY) and pip's index (pip config list), then run this again."
    fi
    "${venv}/bin/python" -c 'import torch, torchaudio, soundfile, espnet2, espnet_atm' \
        || die "the installed packages cannot be imported (see above). Remove ${venv} and run this again."
    get_sclite
    fingerprint >"${stamp}.$$"
    rm -f -- "${installing}"
    mv -f -- "${stamp}.$$" "${stamp}"
}

# ESPnet's recipes (egs2) are in its source distribution only.
fetch_tree() {
    local archive=espnet-${ESPNET_VERSION}.tar.gz sha256
    work=${venv}/fetch  # not local: for the trap
    trap 'rm -rf -- "${work}"' EXIT
    rm -rf -- "${work}"
    mkdir -p -- "${work}"
    say "fetching the recipes of ESPnet ${ESPNET_VERSION}"
    # No isolation: what it takes to read the archive's name and version is installed already.
    TMPDIR=${work} "${venv}/bin/python" -m pip download --no-deps --no-build-isolation --no-binary espnet \
        --dest "${work}" "espnet==${ESPNET_VERSION}" \
        || die "could not fetch the source distribution of ESPnet ${ESPNET_VERSION} (see above).
Check the network, the proxy (HTTPS_PROXY) and pip's index (pip config list), then run this again;
or give an ESPnet checkout with ESPNET_ROOT=/path/to/espnet."
    sha256=$(sha256sum <"${work}/${archive}" | cut -d ' ' -f 1)
    [ "${sha256}" = "${ESPNET_SHA256}" ] \
        || die "${archive}: SHA-256 is ${sha256}, not the ${ESPNET_SHA256} of the release; not used."
    tar -xzf "${work}/${archive}" -C "${work}" --no-same-owner || die "${archive} could not be unpacked (see above)."
    mv -T -- "${work}/espnet-${ESPNET_VERSION}" "${tree}"
    rm -rf -- "${work}"
}

# asr.sh scores with sclite. Debian's package sctk holds it, in a folder of its own; unpacking needs no root.
get_sclite() {
    local work=${venv}/sctk.tmp
    if command -v sclite >/dev/null || [ -x /usr/lib/sctk/bin/sclite ] || [ -x "${venv}/sctk/usr/lib/sctk/bin/sclite" ]; then
        return
    fi
    rm -rf -- "${work}"
    mkdir -p -- "${work}"
    if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
        (
            cd -- "${work}"
            if ! timeout 120 apt-get download sctk && [ "$(id -u)" -eq 0 ]; then
                timeout 300 apt-get update  # no package lists yet, or old ones
                timeout 120 apt-get download sctk
            fi
            dpkg -x sctk_*.deb . && rm -f -- sctk_*.deb
        ) >/dev/null 2>&1 </dev/null || true
    fi
    # Without arguments it prints its usage and fails.
    if { "${work}/usr/lib/sctk/bin/sclite" 2>&1 || true; } | grep -q 'sclite Version'; then
        mv -T -- "${work}" "${venv}/sctk"
    else
        rm -rf -- "${work}"
        say "no sclite (Debian's package sctk) here: WER and CER will be computed with jiwer instead"
    fi
}

install() {
    grep -q "^ESPNET = (\"${ESPNET_VERSION}\"" "${root}/espnet_atm/__init__.py" \
        || die "espnet_atm/__init__.py does not name ${ESPNET_VERSION}, which is installed here, first in ESPNET."
    command -v flock >/dev/null || die "flock not found (Debian's package util-linux)."
    check_writable
    mkdir -p -- "$(dirname -- "${venv}")" || die "choose a folder that is yours with ATM_VENV=/path/to/folder."
    # Next to the environment, which may be made anew. pip inherits the lock: should this script be killed
    # and pip live on, the next one waits for it.
    { exec 9>>"${venv}.lock"; } 2>/dev/null \
        || die "the user ${user} cannot write ${venv}.lock, beside the environment, and it is to be set up.
Have it set up by who may, or choose another folder with ATM_VENV=/path/to/folder."
    if ! flock -n 9; then
        say "waiting for another set-up of ${venv}"
        flock 9
    fi
    packages_ready || install_packages  # perhaps the other one did it
    tree_ready || fetch_tree
    exec 9>&-
}


# --- this clone -------------------------------------------------------------------------------------------------------

write_file() {  # stdin -> $1, in one step, and only when it changes: a recipe may be reading it
    local text
    text=$(cat)
    if [ ! -f "$1" ] || [ "$(<"$1")" != "${text}" ]; then
        printf '%s\n' "${text}" >"$1.$$"
        mv -f -- "$1.$$" "$1"
    fi
}

link_clone() {
    local link=${root}/egs2/TEMPLATE target=$1/egs2/TEMPLATE
    mkdir -p -- "${root}/egs2"
    if [ -e "${link}" ] && [ ! -L "${link}" ]; then
        die "${link} is in the way of the link to ESPnet's recipes; move it away and run this again."
    fi
    [ "$(readlink -- "${link}" || true)" = "${target}" ] || ln -sfn -- "${target}" "${link}"

    write_file "${root}/tools/activate_python.sh" <<SH
# Made by tools/setup.sh; sourced by the path.sh of recipes and by run_tests.sh (bash).
export PATH=$(printf %q "${venv}/bin"):"\${PATH}"
# This clone's espnet_atm, whichever clone installed itself into the environment.
_atm_root=\$(dirname -- "\$(dirname -- "\$(readlink -f -- "\${BASH_SOURCE[0]}")")")
export PYTHONPATH="\${_atm_root}"${ESPNET_ROOT:+:$(printf %q "$1")}"\${PYTHONPATH:+:\${PYTHONPATH}}"
unset _atm_root
# The ESPnet tree whose recipes are used.
export ATM_ESPNET_ROOT=$(printf %q "$1")
SH
    write_file "${root}/tools/extra_path.sh" <<SH
# Made by tools/setup.sh; sourced by the path.sh of recipes (bash).
for _atm_dir in /usr/lib/sctk/bin $(printf %q "${venv}/sctk/usr/lib/sctk/bin"); do
    if [ -x "\${_atm_dir}/sclite" ] && ! command -v sclite >/dev/null; then
        export PATH="\${PATH}:\${_atm_dir}"
    fi
done
unset _atm_dir
# spm_train and its like, which asr.sh calls for word pieces.
export PATH="\${PATH}":$(printf %q "$1")/tools/sentencepiece_commands
SH
}


# --- main -------------------------------------------------------------------------------------------------------------

if [ -n "${ESPNET_ROOT:-}" ]; then
    [ -f "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/asr.sh" ] \
        || die "ESPNET_ROOT=${ESPNET_ROOT} is not an ESPnet checkout: it has no egs2/TEMPLATE/asr1/asr.sh."
    tree=$(realpath -- "${ESPNET_ROOT}")
fi
check_readable
{ packages_ready && tree_ready; } || install
link_clone "${tree}"
