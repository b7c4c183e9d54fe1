"""Start Python in 0.1 s instead of 8 s, by forking from a process that has imported the libraries.

`python()` starts that process, the server, and returns an executable that takes `SCRIPT ARGS` or `-m MODULE ARGS` as
the interpreter does. The executable asks the server for a child with its own arguments, folder, environment and
streams, passes signals on to it, and ends as the child does. What is read at import time (`MMSB_OPS`,
`PYTHONWARNINGS`, a `sitecustomize`) needs a real process, and so does a test that is to notice a missing import.
"""

import atexit
import functools
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@functools.cache
def python() -> str:
    """Start the server, which lives as long as this process, and return the path of the executable."""
    import subprocess
    import tempfile

    if not hasattr(os, 'fork'):
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix='warm-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    executable = folder / 'python'
    executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{folder}/socket" "$@"\n')
    executable.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener, (folder / 'log').open('w') as log:
        listener.bind(str(folder / 'socket'))
        listener.listen()
        server = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())],
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': ''},
            stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[listener.fileno()], start_new_session=True,
        )  # fmt: skip
    atexit.register(server.communicate)  # closes its standard input, as does the end of a process that is killed
    return str(executable)


def ask(address: str, arguments: list[str]) -> int:
    """Run in a child of the server and return its exit code: of a signal, the negative number."""
    request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [len(request).to_bytes(4, 'big')], [0, 1, 2])
        server.sendall(request)
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        status = server.recv(4)
    if not status:
        sys.exit('error: the warm process has ended: ' + Path(address).with_name('log').read_text())
    return os.waitstatus_to_exitcode(int.from_bytes(status, 'big'))


def serve(listener: socket.socket) -> list:
    """Fork for each request until standard input ends. Returns in the child, with the request."""
    import contextlib
    import gc
    import importlib
    import select

    import torch

    sys.path[0] = str(ROOT)  # instead of the folder of this file
    import mmsb.engine.launcher  # noqa: F401

    torch.set_num_threads(1)
    for library in ('mmpretrain', 'mmdet', 'mmseg'):
        with contextlib.suppress(ImportError):  # then a tool that needs it says so
            for part in ('apis', 'datasets', 'engine', 'evaluation', 'models', 'visualization'):
                importlib.import_module(f'{library}.{part}')
    sys.stdout.flush()  # what the imports said is not the children's
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a keeper
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        with listener.accept()[0] as client:
            if os.fork() == 0:
                listener.close()
                return keep(client)
    os._exit(0)


def keep(client: socket.socket) -> list:
    """Fork the child and wait for it; if the client goes first, kill the child and its processes."""
    size, streams, *_ = socket.recv_fds(client, 4, 3)
    request = json.loads(client.recv(int.from_bytes(size, 'big'), socket.MSG_WAITALL))

    def end(*_) -> None:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            client.sendall(status.to_bytes(4, 'big'))
            os._exit(0)

    signal.signal(signal.SIGCHLD, end)
    child = os.fork()
    os.setpgid(child, child)  # in both, so that it is done before either goes on
    for target, stream in enumerate(streams):
        if child == 0:
            os.dup2(stream, target)
        os.close(stream)
    if child == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return request
    while number := client.recv(1):
        os.kill(child, number[0])
    os.killpg(child, signal.SIGKILL)
    os._exit(0)


def become(arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """Do in the child what `python ARGUMENTS` does in a new process; returns the exit code."""
    import runpy
    import traceback

    import numpy as np
    import torch

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # from the system, as in a new process: a tool that sets no seed must not repeat itself
    torch.seed()
    if arguments[0] == '-u':
        sys.stdout.reconfigure(write_through=True)
        arguments = arguments[1:]
    if arguments[0] == '-m':
        sys.argv, first = arguments[1:], folder
        run = functools.partial(runpy.run_module, alter_sys=True)
    else:
        sys.argv, first, run = arguments, os.path.dirname(os.path.realpath(arguments[0])), runpy.run_path
    added = [path for path in environment.get('PYTHONPATH', '').split(os.pathsep) if path]
    sys.path[:] = [first, *added, *(path for path in sys.path[1:] if path not in added)]
    try:
        run(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        if end.code is not None:
            print(end.code, file=sys.stderr)
        return int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    if not sys.argv[1].isdecimal():
        code = ask(sys.argv[1], sys.argv[2:])
        if code < 0:
            if -code != signal.SIGKILL:
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        sys.exit(code)
    import threading

    code = become(*serve(socket.socket(fileno=int(sys.argv[1]))))
    threading._shutdown()  # what the interpreter does at its end, but for the second it takes to clear all modules
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code & 255)


if __name__ == '__main__':
    main()
