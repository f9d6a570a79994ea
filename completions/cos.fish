# Completion of cos for fish; `cos completion install` puts it where fish finds it.
# The words come from `cos __complete`, which answers in milliseconds and loads neither torch nor numpy.

function __cos_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l reply ($words[1] __complete fish $words[2..-1] "$current" 2>/dev/null)
    if test "$reply[1]" = path
        __fish_complete_path "$reply[3]" | string replace -r -- '^' "$reply[2]"
    else
        string join \n -- $reply[2..-1]
    end
end

complete -c cos -f -a '(__cos_complete)'
