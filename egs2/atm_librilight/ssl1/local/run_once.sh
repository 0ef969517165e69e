# Steps that are done once, and what they are built on. To be sourced by scripts of bash that have
# "log" and "die".

# run_once DIR NAME KEY FUNCTION [MODEL]: run FUNCTION, in a subshell, unless it has ended
# with this KEY. What an earlier, killed run left running holds the lock, so that two runs
# never write the same files. A step named "train" refuses to go on with another KEY than it
# was begun with, since ESPnet would resume from its checkpoint without a word; it has ended
# when its last epoch's weights are there, and MODEL.
run_once() {
    local dir=$1 name=$2 key=$3 function=$4 model=${5:-latest.pth}
    local state=${dir}/.steps/${name}
    mkdir -p "${dir}/.steps"
    (
        if ! flock -n 9; then
            log "${name}: an earlier run still works in ${dir}; waiting for it to end"
            flock 9
        fi
        if [ "$(cat "${state}.done" 2>/dev/null)" = "${key}" ]; then
            [ "${name}" != train ] || check_trained "${dir}" "${model}"
            log "${name}: done already (${dir})"
            exit 0
        fi
        if [ "${name}" = train ] && [ -e "${state}.begun" ] \
            && [ "$(cat "${state}.begun")" != "${key}" ]; then
            die "${dir} was begun with other data or settings; remove it to begin anew"
        fi
        rm -f "${state}.done"
        echo "${key}" > "${state}.partial"
        mv "${state}.partial" "${state}.begun"
        ${function}
        [ "${name}" != train ] || check_trained "${dir}" "${model}"
        echo "${key}" > "${state}.partial"
        mv "${state}.partial" "${state}.done"
    ) 9> "${state}.lock"
}

# check_trained DIR MODEL: refuse a training without the weights of its last epoch, which is
# max_epoch or the one that patience ended it at, or without MODEL.
check_trained() {
    local dir=$1 file last epochs
    for file in latest.pth "$2"; do
        [ -s "${dir}/${file}" ] || die "${dir}/${file} is missing or empty, though the training" \
            "has ended: remove ${dir} to train anew"
    done
    epochs=$(sed -n 's/^max_epoch: *//p' "${dir}/config.yaml")
    last=$(basename "$(readlink -f "${dir}/latest.pth")")
    [ "${last}" != "${epochs}epoch.pth" ] || return 0
    ! cmp -s "${dir}/${last}" "${dir}/${epochs}epoch.pth" || return 0  # a copy for the link
    ! grep -qs "\[Early stopping\].*stopped at ${last%.pth}" "${dir}"/train*.log || return 0
    die "${dir}/latest.pth is ${last}, but training has max_epoch: ${epochs}: the weights of" \
        "its last epoch were lost, or no gradient of an epoch was finite (see ${dir}/train.log);" \
        "remove ${dir} to train anew"
}

# need STAGE DIR KEY MODEL: refuse to build on a training of DIR that has not ended with this
# KEY.
need() {
    [ "$(cat "$2/.steps/train.done" 2>/dev/null)" = "$3" ] \
        || die "$2 is not trained to its end with these settings: run stage $1 first"
    check_trained "$2" "$4"
}

# make_key WORD...: one word for all that a step depends on.
make_key() { printf '%s\n' "$@" | md5sum | cut -c-32; }
