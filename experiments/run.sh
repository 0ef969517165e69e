#!/usr/bin/env bash
# The whole experiment, from packages to tables and figures, setting everything up on first use:
#   experiments/run.sh [--work DIR] [--results DIR] [--nj N] [--stage pilot|main|further]
# What is done is skipped, so with the results that are in the repository only tables and figures are made; with
# --results on an empty folder everything is run. It may be stopped at any moment; the same command goes on.
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(dirname -- "${here}")
recipe=${root}/egs2/atm_librilight/ssl1
results=${here}/results
work=  # data and models; in the folder of results, unless it is given
nj=2
stage=main  # or pilot: which objective; or further: masked fractions, and a second objective
# Chosen on dev by the pilot, see README.md.
objective=hubert
second=best_rq
. "${recipe}/local/parse_options.sh"
results=$(realpath -m -- "${results}")
work=$(realpath -m -- "${work:-${results}/work}")

"${root}/tools/setup.sh"
. "${root}/tools/activate_python.sh"
export OMP_NUM_THREADS=1
cd -- "${here}"
options=(--results "${results}")
[ "${stage}" = pilot ] || options+=(--objective "${objective}" --second "${second}")
left=0
python experiment.py "${stage}" "${options[@]}" --left || left=$?
if [ "${left}" = 0 ]; then
    games="fillets-ng-data fillets-ng-data-nl fillets-ng-data-cs"
    prompts=$(printf 'asterisk-core-sounds-%s-g722 ' en es fr it ru)
    mkdir -p "${work}"
    # shellcheck disable=SC2086
    (cd -- "${recipe}" && local/debian_packages.sh "${work}/packages" ${games} ${prompts})
    nice -n 19 python make_data.py --packages "${work}/packages" --data_dir "${work}/data"
    nice -n 19 python experiment.py "${stage}" --work "${work}" --nj "${nj}" "${options[@]}"
elif [ "${left}" != 3 ]; then  # which is: none
    exit "${left}"
fi
[ "${stage}" = pilot ] || python analyse.py --results "${results}"
