# What options on a command line are called, and what they say. To be sourced by scripts of bash.

# option_name WORD: the variable that an option sets.
option_name() {
    local name=${1#--}
    printf '%s\n' "${name//-/_}"
}

# given NAME DEFAULT WORD...: the value of an option on a command line.
given() (
    name=$1 value=$2
    shift 2
    for ((i = 1; i < $#; i++)); do
        next=$((i + 1))
        if [ "${!i}" = --config ] && [ -r "${!next}" ]; then
            unset "${name}"
            # shellcheck disable=SC1090
            . "${!next}"
            value=${!name-${value}}
        fi
    done
    while [ $# -gt 1 ]; do
        [[ $1 != --* || $(option_name "$1") != "${name}" ]] || value=$2
        shift 2
    done
    printf '%s\n' "${value}"
)
