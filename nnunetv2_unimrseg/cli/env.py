"""Print the line that lets nnU-Net find the trainers of this package.

bash and zsh:   eval "$(unimrseg env)"
fish:           unimrseg env --shell fish | source
PowerShell:     unimrseg env --shell powershell | Invoke-Expression

The line appends this package's folder to nnUNet_extTrainer, keeps what is there, and adds it once however often it
runs.
"""

from __future__ import annotations

import argparse
import os

from nnunetv2_unimrseg.nnunet.discovery import VARIABLE, extension_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg env`."""
    parser.add_argument(
        "--shell", choices=sorted(LINES), default="bash", help="the shell that will read the line (default: bash)"
    )


def run(args: argparse.Namespace) -> None:
    """Print the line for `args.shell`."""
    print(environment_line(args.shell, str(extension_folder()), os.pathsep))


def environment_line(shell: str, folder: str, separator: str) -> str:
    """Return one line of `shell` that appends `folder` to nnUNet_extTrainer, a list divided by `separator`."""
    return LINES[shell](folder, separator)


def _posix_line(folder: str, separator: str) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("'", "'\"'\"'") + "'"

    listed = f'"{separator}${{{VARIABLE}:-}}{separator}"'
    appended = f'"${{{VARIABLE}:+${{{VARIABLE}}}{separator}}}"{quoted(folder)}'
    return (
        f"case {listed} in *{quoted(separator + folder + separator)}*) ;; "
        f"*) {VARIABLE}={appended} ;; esac; export {VARIABLE}"
    )


def _fish_line(folder: str, separator: str) -> str:
    quoted = "'" + folder.replace("\\", "\\\\").replace("'", "\\'") + "'"
    listed = f"(string split -n -- '{separator}' \"${VARIABLE}\")"
    return (
        f"contains -- {quoted} {listed}; or set -gx {VARIABLE} (string join -- '{separator}' {listed} {quoted}); "
        f'set -gx {VARIABLE} "${VARIABLE}"'
    )


def _powershell_line(folder: str, separator: str) -> str:
    quoted = "'" + folder.replace("'", "''") + "'"
    listed = f"@(\"$env:{VARIABLE}\" -split '{separator}' | Where-Object {{ $_ }})"
    return f"if ({listed} -cnotcontains {quoted}) {{ $env:{VARIABLE} = ({listed} + {quoted}) -join '{separator}' }}"


LINES = {"bash": _posix_line, "zsh": _posix_line, "fish": _fish_line, "powershell": _powershell_line}
