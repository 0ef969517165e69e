#!/usr/bin/env bash
# Measure this package beside other toolkits: one table and one plot.
#
#   benchmarks/run.sh [--device cpu|cuda] [--quick] [--out DIR] [PART ...]
#
#   PART       masks, step, limit, contrastive, data, scoring; all when none is named
#   --device   cpu (one thread) when not given
#   --quick    the smallest sizes and one round, to see that all runs
#   --out      where table.md, plot.png and each part's rows go; benchmarks/out when not given
#
# The first time it puts the other toolkits (peers.txt) into an environment of their own, on top of the one that
# tools/setup.sh makes: same Python, torch and ESPnet. What cannot be installed is named in the table as missing.
#
# Environment variables
#   BENCH_VENV   where that environment is; benchmarks/.venv when not given
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(dirname -- "${here}")
venv=$(realpath -m -- "${BENCH_VENV:-${here}/.venv}")
stamp=${venv}/.installed  # written last; holds what the installation was made from

declare -A scripts=(
    [masks]=mask_speed.py [step]=step_speed.py [limit]=limit.py
    [contrastive]=contrastive_speed.py [data]=data_speed.py [scoring]=score_speed.py
)
all=(masks step limit contrastive data scoring)

say() { echo "run.sh: $*"; }
die() { echo "run.sh: $*" >&2; exit 1; }

device=cpu
out=${here}/out
quick=()
parts=()
while [ $# -gt 0 ]; do
    case $1 in
        --device) [[ ${2:-} =~ ^(cpu|cuda)$ ]] || die "--device: write cpu or cuda"; device=$2; shift 2;;
        --out) [ -n "${2:-}" ] || die "--out: name a folder"; out=$2; shift 2;;
        --quick) quick=(--quick); shift;;
        -h|--help) sed -n '2,/^set/{/^#/s/^# \?//p}' "${BASH_SOURCE[0]}"; exit 0;;
        -*) die "$1 is not known; see --help";;
        *) [ -n "${scripts[$1]:-}" ] || die "$1 is no part; there are: ${all[*]}"; parts+=("$1"); shift;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")


# --- the other toolkits -----------------------------------------------------------------------------------------------

# What no peer may bring in another version of.
frozen() { python -m pip list --format=freeze | grep -E '^(torch|torchaudio|espnet|numpy)=='; }

fingerprint() {
    python -c 'import sys, sysconfig; print(sys.executable, sysconfig.get_path("purelib"))'
    frozen
    cat -- "${here}/peers.txt"
}

install_peers() {
    local site peer
    say "making ${venv}"
    rm -rf -- "${venv}"
    python -m venv "${venv}" || die "could not make ${venv} (see above)"
    site=$("${venv}/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # The project's packages come after what is installed here, and none of them is changed. (What their own .pth
    # files say counts too: setuptools brings distutils back that way.)
    python -c 'import sysconfig; print(f"import site; site.addsitedir({sysconfig.get_path("purelib")!r})")' \
        >"${site}/project.pth"
    frozen >"${venv}/constraints.txt"
    grep -vE '^ *(#|$)' "${here}/peers.txt" | while read -r peer; do
        "${venv}/bin/python" -m pip install --quiet --constraint "${venv}/constraints.txt" "${peer}" </dev/null \
            || say "${peer} cannot be installed (see above): it will be missing from the table"
    done
    fingerprint >"${stamp}"
}

"${root}/tools/setup.sh"
. "${root}/tools/activate_python.sh"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
(
    unset PYTHONPATH PYTHONHOME
    if [ ! -f "${stamp}" ] || [ "$(<"${stamp}")" != "$(fingerprint)" ]; then
        install_peers
    fi
)


# --- the measurements -------------------------------------------------------------------------------------------------

export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1
mkdir -p -- "${out}"
failed=()
for part in "${parts[@]}"; do
    rm -f -- "${out}/${part}.jsonl"
    if [ ! -f "${here}/${scripts[${part}]}" ]; then
        say "${part}: there is no ${scripts[${part}]}"
        failed+=("${part}")
        continue
    fi
    say "${part}: ${scripts[${part}]}, log in ${out}/${part}.log"
    "${venv}/bin/python" "${here}/${scripts[${part}]}" --device "${device}" --out "${out}" "${quick[@]}" \
        >"${out}/${part}.log" 2>&1 || failed+=("${part}")
done
"${venv}/bin/python" "${here}/join.py" --device "${device}" "${out}" --parts "${parts[@]}" --failed "${failed[@]}"
say "wrote ${out}/table.md and ${out}/plot.png"
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}; see their logs in ${out}"
