# Completion of cos for bash 4 or newer; `cos completion install` puts it where bash finds it.
# The words come from `cos __complete`, which answers in milliseconds and loads neither torch nor numpy.

_cos() {
    local program=$1 reply
    [[ $program == '~'* ]] && program=$HOME${program:1}
    COMPREPLY=()
    mapfile -t reply < <("$program" __complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
    if [[ ${reply[0]} == path ]]; then
        # Without words of ours, readline completes file names as it always does.
        compopt -o default
        return
    fi
    COMPREPLY=("${reply[@]:1}")
}

complete -F _cos cos
