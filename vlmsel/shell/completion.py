"""Shell completion: `eval "$(vlmsel completion bash)"`, zsh the same, `vlmsel completion fish | source`.

The script holds the names of commands and options, so that a shell asks nobody while words are typed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from vlmsel.shell.listed import listed

BASH = """_vlmsel() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" options=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word")); return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [[ "$word" == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$word"))
  else COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _vlmsel vlmsel
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
SHELLS = ("bash", "zsh", "fish")


def script(words: Sequence[str]) -> int:
    """Print the script of a shell; return the exit code."""
    if list(words) not in ([shell] for shell in SHELLS):
        print(f"error: vlmsel completion takes one of {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    print(written(words[0], {name: list(own["options"]) for name, own in listed().items()}), end="")
    return 0


def written(shell: str, known: Mapping[str, Sequence[str]]) -> str:
    """Write the script of a shell.

    >>> print(written("fish", {"tune": ["--data"]}), end="")
    complete -c vlmsel -n __fish_use_subcommand -xa "tune"
    complete -c vlmsel -n "__fish_seen_subcommand_from tune" -l data
    """
    if shell == "fish":
        lines = [f'complete -c vlmsel -n __fish_use_subcommand -xa "{" ".join(known)}"']
        for name, own in known.items():
            lines += [f'complete -c vlmsel -n "__fish_seen_subcommand_from {name}" -l {one[2:]}' for one in own]
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'    {name}) options="{" ".join(own)}" ;;' for name, own in known.items())
    return (ZSH if shell == "zsh" else "") + BASH.format(commands=" ".join(known), cases=cases)
