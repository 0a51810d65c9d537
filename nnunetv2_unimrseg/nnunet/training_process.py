"""nnU-Net's training command in a process of its own, whose exit code tells a user's error from other failures."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from nnunetv2_unimrseg.errors import UserError

USER_ERROR_EXIT_CODE, INTERRUPTED_EXIT_CODE = 2, 130

_TRACEBACK = "Traceback (most recent call last):\n"


def code_that_runs(module: str) -> str:
    """Return what `python -c` runs, with the arguments of nnUNetv2_train, to call a module's `main`.

    The current folder is no place to import from: it may hold a checkout of this project, whose trainers and planners
    lie elsewhere than in the installed package. `python -m` would import from it, and so would every process that it
    starts.
    """
    return (
        "import sys; sys.path = [entry for entry in sys.path if entry]; "
        f"from {module} import main; sys.exit(main(sys.argv[1:]))"
    )


def main(arguments: list[str]) -> int:
    """Run nnUNetv2_train with these arguments and return the exit code (see `exit_code`)."""
    from nnunetv2.run.run_training import run_training_entry

    sys.argv = ["nnUNetv2_train", *arguments]
    return exit_code(run_training_entry)


def exit_code(train: Callable[[], None]) -> int:
    """Train, and return the exit code.

    A UserError of a trainer, also of one on another GPU, is one message on stderr and `USER_ERROR_EXIT_CODE`; Ctrl-C
    ends quietly with `INTERRUPTED_EXIT_CODE`. Whatever else nnU-Net raises passes through.
    """
    from torch.multiprocessing.spawn import ProcessRaisedException

    try:
        train()
    except UserError as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        threading.excepthook = lambda _: None  # nnU-Net's threads complain when their processes end before them
        return INTERRUPTED_EXIT_CODE
    except ProcessRaisedException as error:
        message = users_error_in(str(error))
        if message is None:
            raise
        return _refused(message)
    return 0


def _refused(message: str) -> int:
    sys.stdout.flush()
    print(f"unimrseg: error: {message}", file=sys.stderr, flush=True)
    return USER_ERROR_EXIT_CODE


def users_error_in(text: str) -> str | None:
    """Return the message of the UserError that a formatted traceback ends with, or None."""
    name = f"{UserError.__module__}.{UserError.__qualname__}: "
    lines = text.rpartition(_TRACEBACK)[2].splitlines()
    start = next((number for number, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    message = "\n".join(lines[start:]).strip()
    return message.removeprefix(name) if message.startswith(name) else None
