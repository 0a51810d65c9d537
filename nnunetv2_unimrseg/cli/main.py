"""The `unimrseg` command: one module of this package a subcommand, imported only when it is asked for."""

from __future__ import annotations

import argparse
import errno
import importlib
import keyword
import sys
from collections.abc import Sequence
from types import ModuleType

from nnunetv2_unimrseg import __version__
from nnunetv2_unimrseg.errors import UserError, nearest

COMMANDS = (
    "env", "info", "import", "plan", "configure", "train", "predict", "evaluate", "compare", "reconstruct", "demo",
)  # fmt: skip

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a file system answers where it is full, read-only, closed to the user or broken."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `unimrseg` with the given arguments (`sys.argv[1:]` by default) and return its exit code.

    0 means done. A mistake that the user can mend, a full disk and a lack of permission are one message on stderr, no
    traceback, and code 2, as for wrong arguments.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        _build_overview_parser().print_help(sys.stderr)
        return USER_ERROR_EXIT_CODE
    command = argv[0]
    try:
        if command.startswith("-"):
            _build_overview_parser().parse_args(argv)
        if command not in COMMANDS:
            raise UserError(f"Unknown command '{command}'.{nearest(command, COMMANDS)} There are: {_listed()}.")
        _import_command(command).run(build_parser(command).parse_args(argv[1:]))
    except UserError as error:
        print(f"unimrseg: error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        where = f" in {error.filename}" if error.filename else ""
        print(f"unimrseg: error: The file system refuses{where}: {error.strerror}.", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        print("unimrseg: interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    return 0


def _import_command(command: str) -> ModuleType:
    module = f"{command}_" if keyword.iskeyword(command) else command
    return importlib.import_module(f"nnunetv2_unimrseg.cli.{module}")


def _listed() -> str:
    return ", ".join(COMMANDS)


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


def build_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of one command's arguments."""
    module = _import_command(command)
    parser = argparse.ArgumentParser(
        prog=f"unimrseg {command}",
        description=(module.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def _build_overview_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {_summary(_import_command(command))}" for command in COMMANDS]
    parser = argparse.ArgumentParser(
        prog="unimrseg",
        usage="unimrseg COMMAND [ARGUMENTS]",
        description="UniMRSeg for nnU-Net v2: one model that segments with any subset of its training modalities.",
        epilog="commands (each has --help):\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nnunetv2-unimrseg {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
