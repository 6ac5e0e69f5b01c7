"""`ksi-mcp shell-completion`: the script that teaches a shell our commands."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import typer

_BASH: Final = r"""# ksi-mcp completion for bash; in ~/.bashrc:  eval "$(ksi-mcp shell-completion bash)"
_ksi_mcp_completion() {
    local line typed=${COMP_LINE:0:COMP_POINT}
    COMPREPLY=()
    while IFS= read -r line; do
        [[ -n $line ]] && COMPREPLY+=("${line%%$'\t'*}")
    done < <(_KSI_MCP_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS="$typed" \
        "$1" 2>/dev/null)
}
complete -o default -F _ksi_mcp_completion ksi-mcp"""

_ZSH: Final = r"""#compdef ksi-mcp
# ksi-mcp completion for zsh; in ~/.zshrc after compinit:  eval "$(ksi-mcp shell-completion zsh)"
_ksi_mcp_completion() {
    local line value about
    local -a found
    while IFS= read -r line; do
        value=${line%%$'\t'*} about=
        [[ $line == *$'\t'* ]] && about=${line#*$'\t'}
        [[ -n $value ]] && found+=("${value//:/\\:}${about:+:$about}")
    done < <(_KSI_MCP_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
        _TYPER_COMPLETE_ARGS="${(j: :)words[1,CURRENT]}" "${words[1]}" 2>/dev/null)
    if (( ${#found} )); then
        _describe -V 'ksi-mcp' found
    else
        _files
    fi
}
compdef _ksi_mcp_completion ksi-mcp"""

_FISH: Final = r"""# ksi-mcp completion for fish; in ~/.config/fish/config.fish:  ksi-mcp shell-completion fish | source
function __ksi_mcp_completion
    set -lx _KSI_MCP_COMPLETE complete_fish
    set -lx _TYPER_COMPLETE_FISH_ACTION get-args
    set -lx _TYPER_COMPLETE_ARGS (commandline -cp)
    set -l found (command ksi-mcp 2>/dev/null | string match --invert --regex '^$')
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command ksi-mcp --no-files --arguments '(__ksi_mcp_completion)'"""


class Shell(StrEnum):
    """The shells that have a script."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


SCRIPTS: Final = {Shell.bash: _BASH, Shell.zsh: _ZSH, Shell.fish: _FISH}


def command(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish", show_default=False)],
) -> None:
    """Print the completion script of a shell: commands, options, their words, and names from the data folder.

    bash: eval "$(ksi-mcp shell-completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc after compinit;
    fish: ksi-mcp shell-completion fish | source in config.fish.
    """
    typer.echo(SCRIPTS[shell])
