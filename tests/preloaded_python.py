"""Runs commands in processes of their own that do not import torch and other slow libraries anew (ten seconds each).

`start()` returns a folder of executables: `python`, `unimrseg` and nnU-Net's commands. Each of them asks a server,
which has imported these libraries, to fork. The fork takes over the arguments, environment, folder and open files, and
runs the command; signals and the exit code pass through. The processes that it spawns are such forks too. nnU-Net
(which reads its folders when it is imported) and this package are not imported before. Fresh interpreters are used
instead with UNIMRSEG_TEST_FRESH_PROCESSES=1, and on systems other than Linux.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import importlib.metadata
import json
import os
import random
import runpy
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

PRELOADED = (
    "torch", "torch._dynamo", "numpy", "scipy.ndimage", "scipy.stats", "matplotlib.pyplot", "SimpleITK", "pandas",
    "monai.metrics", "skimage.transform", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures",
)  # fmt: skip
REAL_BIN = Path(sys.executable).parent
COMMANDS = ("python", "unimrseg", *(path.name for path in REAL_BIN.glob("nnUNetv2_*")))

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python" and arguments[:1] == ["-B"]:  # multiprocessing gives it where PYTHONDONTWRITEBYTECODE is set
    del arguments[0]
if name == "python" and arguments[:1] not in (["-c"], ["-m"]) and (not arguments or arguments[0].startswith("-")):
    os.execv({python!r}, [{python!r}, *arguments])
files = [int(number) for number in os.listdir("/proc/self/fd")]
files = [number for number in files if os.path.exists(f"/proc/self/fd/{{number}}")]
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = {{"name": name, "arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}}
ignored, blocked = signal.getsignal(signal.SIGINT) == signal.SIG_IGN, list(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
request["namespace"] = f"/proc/{{os.getpid()}}/ns/net"
message = json.dumps({{**request, "files": files, "ignores_interrupts": ignored, "blocked": blocked}}).encode()
socket.send_fds(server, [len(message).to_bytes(4, "big")], files)
server.sendall(message)
for number in files:
    if number > 2:
        os.close(number)
answer = server.makefile()
process = int(answer.readline())
for number in (signal.SIGTERM,) if ignored else (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(process, number))
code = int(answer.readline() or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def start() -> Path | None:
    """Return a folder of executables, whose server starts when the first of them is used; None where there is none."""
    if sys.platform != "linux" or os.environ.get("UNIMRSEG_TEST_FRESH_PROCESSES"):
        return None
    folder = Path(tempfile.mkdtemp(prefix="preloaded"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(folder / "socket")
    script = CLIENT.format(python=sys.executable, address=address)
    for name in COMMANDS:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    threading.Thread(target=_serve_when_asked, args=(listening, folder), daemon=True).start()
    return folder


def _serve_when_asked(listening: socket.socket, folder: Path) -> None:
    select.select([listening], [], [])
    number = listening.fileno()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    server = subprocess.Popen(
        [sys.executable, __file__, str(number), str(folder / "python")], pass_fds=[number], env=environment
    )
    atexit.register(server.terminate)
    listening.close()


class Server:
    """Forks itself for each request; tells the client the fork's process number and, later, how it ended."""

    def __init__(self, listening: int, executable: str) -> None:
        self.executable = executable
        self.socket = socket.socket(fileno=listening)
        self.ended, self.wake = socket.socketpair()
        self.ended.setblocking(False)
        self.wake.setblocking(False)
        signal.set_wakeup_fd(self.wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.socket, selectors.EVENT_READ)
        self.selector.register(self.ended, selectors.EVENT_READ)
        self.clients: dict[int, socket.socket] = {}

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.socket:
                    self.fork_for(self.socket.accept()[0])
                elif key.fileobj is self.ended:
                    self.tell_ends()
                else:
                    self.kill_for(key.fileobj)

    def fork_for(self, client: socket.socket) -> None:
        length, files, _, _ = socket.recv_fds(client, 4, 250)
        request = json.loads(client.makefile("rb").read(int.from_bytes(length, "big")))
        process = os.fork()
        if process == 0:
            self.become(client, request, files)
        for number in files:
            os.close(number)
        self.clients[process] = client
        self.selector.register(client, selectors.EVENT_READ)
        with contextlib.suppress(BrokenPipeError):  # the client was killed meanwhile, which `kill_for` notices
            client.sendall(f"{process}\n".encode())

    def tell_ends(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.ended.recv(4096)
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            client = self.clients.pop(process)
            with contextlib.suppress(OSError):
                client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            with contextlib.suppress(KeyError):
                self.selector.unregister(client)
            client.close()

    def kill_for(self, client: socket.socket) -> None:
        """Kill the fork whose client was killed."""
        self.selector.unregister(client)
        for process, its_client in self.clients.items():
            if its_client is client:
                os.kill(process, signal.SIGKILL)

    def become(self, client: socket.socket, request: dict, files: list[int]) -> None:
        """Turn this fork into the command that was asked for."""
        self.selector.close()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        interrupt = signal.SIG_IGN if request["ignores_interrupts"] else signal.default_int_handler
        signal.signal(signal.SIGINT, interrupt)
        signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
        for each in (self.socket, self.ended, self.wake, client, *self.clients.values()):
            each.close()
        aside = [fcntl.fcntl(number, fcntl.F_DUPFD, 1000) for number in files]
        for number in files:
            os.close(number)
        for number, target in zip(aside, request["files"], strict=True):
            os.dup2(number, target)
            os.close(number)
        enter_network(request["namespace"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        os._exit(run(request["name"], request["arguments"], self.executable))


def enter_network(namespace: str) -> None:
    """Enter the network namespace of a client that is in another one."""
    if os.stat(namespace).st_ino != os.stat("/proc/self/ns/net").st_ino:
        with open(namespace) as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
                raise OSError(ctypes.get_errno(), "the client's network cannot be entered")


def run(name: str, arguments: list[str], executable: str) -> int:
    """Run a command in this process and return its exit code."""
    import multiprocessing.spawn

    import numpy as np

    np.random.seed()
    random.seed()
    sys.executable = executable
    multiprocessing.spawn.set_executable(executable)
    os.cpu_count = lambda: 1  # as many threads as that nnU-Net takes on a CPU; each worker of pytest has a core
    code = 0
    try:
        execute(name, arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return code


def execute(name: str, arguments: list[str]) -> None:
    """Do what the interpreter does for `-c CODE`, `-m MODULE`, `FILE`, and what the command of an entry point does."""
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    first, *more = arguments or [""]
    if name != "python":
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv, sys.path[0] = [str(REAL_BIN / name), *arguments], str(REAL_BIN)
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name=name)
        sys.exit(entry.load()())
    elif first == "-c":
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv, sys.path[0] = ["-c", *more[1:]], ""
        exec(compile(more[0], "<string>", "exec"), module.__dict__)
    elif first == "-m":
        sys.argv, sys.path[0] = list(more), os.getcwd()
        runpy.run_module(more[0], run_name="__main__", alter_sys=True)
    else:
        script = os.path.abspath(first)
        sys.argv, sys.path[0] = [first, *more], os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    for library in PRELOADED:
        importlib.import_module(library)
    Server(int(sys.argv[1]), sys.argv[2]).serve()
