# Steps that are done once, and what they are built on. To be sourced by scripts of bash that have
# "log" and "die".

# run_once DIR NAME KEY FUNCTION [MODEL [SETTINGS]]: run FUNCTION, in a subshell, unless it
# has ended with this KEY. What an earlier, killed run left running holds the lock, so that
# two runs never write the same files. A step named "train" refuses to go on with another KEY
# than that of the weights that are there, since ESPnet would resume from its checkpoint
# without a word; it has ended when its last epoch's weights are there, and MODEL. SETTINGS
# are what makes a training this one, in lines of "name: value".
run_once() {
    local dir=$1 name=$2 key=$3 function=$4 model=${5:-latest.pth} settings=${6:-}
    local state=${dir}/.steps/${name} there follower
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
        if [ "${name}" = train ] && [ -e "${state}.begun" ] && compgen -G "${dir}/*.pth" > /dev/null \
            && [ "$(cat "${state}.begun")" != "${key}" ]; then
            refuse_other "${dir}" "${settings}"
        fi
        rm -f "${state}.done"
        echo "${key}" > "${state}.partial"
        mv "${state}.partial" "${state}.begun"
        if [ "${name}" = train ]; then
            echo "${settings}" > "${state}.partial"
            mv "${state}.partial" "${state}.settings"
            [ -e "${dir}/checkpoint.pth" ] || begin_from_fewer "${dir}" "${settings}"
            # Not held by what is started: it ends with this shell, however that ends.
            there=$(stat -c '%i %s' "${dir}/train.log" 2> /dev/null || echo 0 0)
            # shellcheck disable=SC2086
            exec 6> >(exec python3 "${BASH_SOURCE[0]%/*}/follow_training.py" "${dir}/train.log" \
                ${there} 9>&-)
            follower=$!
            ${function} 6>&-
            exec 6>&-
            wait "${follower}" || true
            check_trained "${dir}" "${model}"
        else
            ${function}
        fi
        echo "${key}" > "${state}.partial"
        mv "${state}.partial" "${state}.done"
    ) 9> "${state}.lock"
}

# refuse_other DIR SETTINGS: end, saying how a training differs from the one in DIR.
refuse_other() {
    local differences
    differences=$(awk '
        {at = index($0, ": "); name = substr($0, 1, at - 1); value = substr($0, at + 2)}
        NR == FNR {was[name] = value; next}
        {is[name] = value; names[++n] = name}
        END {
            for (i = 1; i <= n; i++)
                if (!(names[i] in was)) print "  " names[i] ": nothing there, " is[names[i]] " now"
                else if (was[names[i]] != is[names[i]])
                    print "  " names[i] ": " was[names[i]] " there, " is[names[i]] " now"
            for (name in was) if (!(name in is)) print "  " name ": " was[name] " there, nothing now"
        }' "$1/.steps/train.settings" - 2> /dev/null <<< "$2" || true)
    die "$1 holds a training with other data or settings:"$'\n'"${differences:-  (of an earlier \
version of the recipe, which did not keep them)}"$'\n'"To keep both, give this run another \
--expdir, or a changed config another file name; to train anew, remove the folder"
}

# begin_from_fewer DIR SETTINGS: begin a training with what one beside it, the same but for
# fewer epochs, has learned.
begin_from_fewer() {
    local dir=$1 same wanted other at most=0 from= file
    same=$(grep -v '^max_epoch: ' <<< "$2" || true)
    wanted=$(sed -n 's/^max_epoch: //p' <<< "$2")
    for other in "${dir%/*}"/*/.steps/train.settings; do
        other=${other%/.steps/train.settings}
        [ -n "${same}" ] && [ -s "${other}/checkpoint.pth" ] && [ "${other}" != "${dir}" ] \
            && [ "$(grep -v '^max_epoch: ' "${other}/.steps/train.settings")" = "${same}" ] || continue
        at=$(basename "$(readlink -f "${other}/latest.pth")" epoch.pth)
        if [[ ${at} =~ ^[0-9]+$ ]] && [ "${at}" -gt "${most}" ] && [ "${at}" -lt "${wanted}" ]; then
            most=${at} from=${other}
        fi
    done
    [ -n "${from}" ] || return 0
    (
        if ! flock -n 8; then
            log "${from}, the same with fewer epochs, is being trained: not gone on from"
            exit 0
        fi
        log "Going on from a copy of ${from}, the same after ${most} epochs"
        for file in "${from}"/*.pth "${from}/tensorboard" "${from}/images"; do
            [ "${file##*/}" = checkpoint.pth ] || [ ! -e "${file}" ] || cp -a "${file}" "${dir}"
        done
        cp "${from}/checkpoint.pth" "${dir}/checkpoint.partial"
        mv "${dir}/checkpoint.partial" "${dir}/checkpoint.pth"  # last: ESPnet resumes from it
    ) 8> "${from}/.steps/train.lock"
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
