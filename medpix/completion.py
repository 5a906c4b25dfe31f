"""Prints a script for bash and zsh that completes subcommands, recipes, config keys and files.

medpix completion > ~/.local/share/bash-completion/completions/medpix      # bash
medpix completion >> ~/.zshrc                                              # zsh
"""

import argparse

from medpix.commands import COMMANDS
from vlm_core.recipe import config_keys, recipe_names

SCRIPT = """\
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_medpix() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD - 1]}"
    case "$COMP_CWORD:$before:$word" in
        1:*) COMPREPLY=($(compgen -W "%(commands)s" -- "$word")) ;;
        *:--recipe:* | *:--config:*) COMPREPLY=($(compgen -W "%(recipes)s" -- "$word") $(compgen -f -- "$word")) ;;
        *:*:--*) COMPREPLY=($(compgen -W "%(keys)s" -- "$word")) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}
complete -o filenames -F _medpix medpix
"""


def script() -> str:
    """Returns the script."""
    keys = ["--recipe", "--help", *(f"--{key}" for key, _ in config_keys())]
    return SCRIPT % {
        "commands": " ".join(command.name for command in COMMANDS),
        "recipes": " ".join(recipe_names()),
        "keys": " ".join(keys),
    }


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="medpix completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(script(), end="")
