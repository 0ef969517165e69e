# Command-line options as utils/parse_options.sh takes them: "--name value" sets the variable "name", which the
# script has set before; dashes count as underscores. But no value is run as code, and what is misread is refused.
# To be sourced by scripts of bash.

. "$(dirname "${BASH_SOURCE[0]}")"/options.sh

# set_options WORD...: set the variables; what is left is in "positional".
set_options() {
    local _name _i _next _unsafe='[$`"\]|'$'\n'
    refuse() {
        echo "${0##*/}: error: $*" 1>&2
        exit 1
    }
    for ((_i = 1; _i < $#; _i++)); do  # they come first: the command line wins
        _next=$((_i + 1))
        if [ "${!_i}" = --config ]; then
            [ -r "${!_next}" ] || refuse "--config ${!_next}: no such file"
            # shellcheck disable=SC1090
            . "${!_next}"
        fi
    done
    while [ -n "${1:-}" ]; do
        case "$1" in
            --help|-h)
                [ -n "${help_message:-}" ] || refuse "there is no help"
                echo "${help_message}" 1>&2
                exit 0 ;;
            --*=*) refuse "write --name value, not $1" ;;
            --*) ;;
            *) break ;;
        esac
        _name=$(option_name "$1")
        [[ ${_name} =~ ^[a-z][a-z0-9_]*$ ]] && [ -n "${!_name+set}" ] || [ "${_name}" = config ] \
            || refuse "there is no option $1"
        [ $# -gt 1 ] || refuse "$1 has no value"
        _next=$(option_name "$2")
        if [[ $2 = --* && ${_next} =~ ^[a-z][a-z0-9_]*$ && -n "${!_next+set}" ]]; then
            refuse "$1 has no value: an option, $2, comes next"
        fi
        # ESPnet's scripts, which it may be given to, would run or lose these.
        [[ ! $2 =~ ${_unsafe} ]] || refuse "$1 $2: \$, \`, \", \\ and line ends are not allowed in a value"
        if [[ ${!_name-} = true || ${!_name-} = false ]]; then
            [[ $2 = true || $2 = false ]] || refuse "$1 $2: write true or false"
        fi
        printf -v "${_name}" %s "$2"
        shift 2
    done
    positional=("$@")
}

# What comes before "--as_defaults true" are defaults: a function keep_defaults of the script may look at them. What
# comes after is in "given_options".
_defaults=()
for _word; do
    if [ "${_word}" = --as_defaults ]; then
        set_options "${_defaults[@]}"
        [ "${#positional[@]}" -eq 0 ] || refuse "no option before --as_defaults: ${positional[*]}"
        shift $((${#_defaults[@]} + 2))
        break
    fi
    _defaults+=("${_word}")
done
[ -z "$(type -t keep_defaults)" ] || keep_defaults
given_options=("$@")
set_options "$@"
set -- ${positional[@]+"${positional[@]}"}
