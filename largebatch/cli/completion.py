"""`largebatch completion bash|zsh|fish`: prints the script that lets the shell complete our command line by TAB."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from largebatch.cli.catalogue.completing import PathsError, completions
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_WRONG_INPUT

_PATHS = "<paths>"  # the reply where the shell shall complete a path
_BASH = """\
# bash: eval "$(largebatch completion bash)", in ~/.bashrc
_largebatch() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n' word kept=""
    word="${line##*[[:space:]]}"
    # = and : part words for bash, and it replaces only what is behind the last of them.
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then kept="${word%%=*}="; fi
    if [[ ${word#"$kept"} == *:* && $COMP_WORDBREAKS == *:* ]]; then kept="${word%:*}:"; fi
    local reply
    reply="$("$1" completion reply bash "$line" 2>/dev/null)"
    if [[ $reply == "<paths>" ]]; then
        compopt -o filenames
        COMPREPLY=($(compgen -f -- "${word#"$kept"}"))
        return
    fi
    COMPREPLY=()
    for word in $reply; do COMPREPLY+=("${word#"$kept"}"); done
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]]; then compopt -o nospace; fi
}
complete -F _largebatch largebatch
"""
_ZSH = """\
#compdef largebatch
# zsh: eval "$(largebatch completion zsh)", in ~/.zshrc behind compinit
_largebatch() {
    local -a open closed open_shown closed_shown
    local reply name about
    reply="$("${words[1]}" completion reply zsh "${(@)words[2,CURRENT]}" 2>/dev/null)"
    if [[ $reply == "<paths>" ]]; then
        compset -P '*='
        _files
        return
    fi
    while IFS=$'\\t' read -r name about; do
        [[ -n $name ]] || continue
        if [[ $name == *[=.] ]]; then
            open+=("$name"); open_shown+=("$name${about:+  -- $about}")
        else
            closed+=("$name"); closed_shown+=("$name${about:+  -- $about}")
        fi
    done <<< "$reply"
    (( $#open )) && compadd -l -S '' -d open_shown -a -- open
    (( $#closed )) && compadd -l -d closed_shown -a -- closed
}
compdef _largebatch largebatch
"""
_FISH = """\
# fish: largebatch completion fish > ~/.config/fish/completions/largebatch.fish
function __largebatch
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l reply ($words[1] completion reply fish $words[2..] "$current" 2>/dev/null)
    if test "$reply" = "<paths>"
        set -l parts (string split -m 1 -- = "$current")
        if test (count $parts) = 2
            for path in (__fish_complete_path "$parts[2]")
                echo "$parts[1]=$path"
            end
        else
            __fish_complete_path "$current"
        end
        return
    end
    printf '%s\\n' $reply
end
complete -c largebatch -f -a '(__largebatch)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_USAGE = """usage: largebatch completion bash|zsh|fish

bash   eval "$(largebatch completion bash)"                  in ~/.bashrc
zsh    eval "$(largebatch completion zsh)"                   in ~/.zshrc, behind compinit
fish   largebatch completion fish > ~/.config/fish/completions/largebatch.fish"""


def main(arguments: Sequence[str]) -> int:
    """Print a script; for `reply SHELL WORD ... CURRENT`, which it calls, what may stand in place of CURRENT."""
    if len(arguments) == 1 and arguments[0] in SCRIPTS:
        print(SCRIPTS[arguments[0]], end="")
        return EXIT_DONE
    if arguments[:1] == ["reply"] and len(arguments) > 2:
        _reply(arguments[1], arguments[2:])
        return EXIT_DONE
    is_asked = arguments[:1] in (["--help"], ["-h"])
    print(_USAGE, file=None if is_asked else sys.stderr)
    return EXIT_DONE if is_asked else EXIT_WRONG_INPUT


def _reply(shell: str, words: Sequence[str]) -> None:
    *before, current = _words_of_line(words[0]) if shell == "bash" else words
    try:
        found = completions(before, current)
    except PathsError:
        print(_PATHS)
        return
    for word in found:
        print(word.text if shell == "bash" else f"{word.text}\t{word.about}".rstrip())


def _words_of_line(line: str) -> list[str]:
    """The arguments up to the cursor, without the command; the last one is empty behind a blank.

    >>> _words_of_line("largebatch train 'run.name=a' opt"), _words_of_line("largebatch ")
    (['train', 'run.name=a', 'opt'], [''])
    """
    words = [word.strip("'\"") for word in line.split()]
    return [*words[1:], *([""] if line[-1:].isspace() or len(words) < 2 else [])]
