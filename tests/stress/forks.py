"""Commands and workflows in forks of one process that has imported everything: many of them in little time.

Jobs of a workflow call `python -m satm …`; here `python` is a small client of that process.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
request = {{"folder": os.getcwd(), "arguments": sys.argv[1:], "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as channel:
    channel.connect({address!r})
    socket.send_fds(channel, [b"x"], [0, 1, 2])
    channel.sendall(json.dumps(request).encode())
    channel.shutdown(socket.SHUT_WR)
    sys.exit(int(channel.recv(16)))
"""


class Forks:
    """The address of the process, and the folder with its clients."""

    def __init__(self, folder: Path) -> None:
        self.address, self.client = str(folder / "channel"), folder / "bin" / "python"
        self.client.parent.mkdir()
        self.client.write_text(CLIENT.format(python=os.path.realpath(sys.executable), address=self.address))
        self.client.chmod(0o755)

    def run(self, folder: Path, *arguments: str) -> tuple[int, str]:
        """Run `-m satm …` or `-m snakemake …` in a folder; return the exit code and all output."""
        request = {"folder": str(folder), "arguments": list(arguments), "environment": dict(os.environ)}
        with tempfile.TemporaryFile("w+") as output, socket.socket(socket.AF_UNIX) as channel:
            channel.connect(self.address)
            socket.send_fds(channel, [b"x"], [0, output.fileno(), output.fileno()])
            channel.sendall(json.dumps(request).encode())
            channel.shutdown(socket.SHUT_WR)
            code = int(channel.recv(16) or 1)
            output.seek(0)
            return code, output.read()

    def serve(self) -> None:
        """Answer requests until killed."""
        import pandas  # noqa: F401 - what commands import late
        import sklearn.datasets  # noqa: F401
        from snakemake import cli

        import satm.cli
        import satm.stages.distill
        import satm.stages.evaluate
        import satm.stages.experts
        import satm.stages.report

        mains = {"satm": satm.cli.main, "snakemake": cli.main}
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.address)
            listening.listen(64)
            while True:
                channel, _ = listening.accept()
                if not os.fork():
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    self._answer(channel, mains)
                channel.close()

    def _answer(self, channel: socket.socket, mains: Mapping[str, object]) -> None:
        """Run one command in this fork, and end it."""
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 3)
        request = json.loads(b"".join(iter(lambda: channel.recv(2**16), b"")))
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        _, module, *arguments = request["arguments"]
        sys.executable, sys.argv = str(self.client), [module, *arguments]
        code = 1
        try:
            code = int(mains[module](arguments) or 0)  # type: ignore[operator]
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        channel.sendall(str(code).encode())
        os._exit(0)


@contextlib.contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """Start the process; it ends with the context."""
    served = Forks(folder)
    if not (process := os.fork()):
        try:
            served.serve()
        finally:
            os._exit(1)
    try:
        while not Path(served.address).exists():
            if os.waitpid(process, os.WNOHANG)[0]:
                raise RuntimeError("the process for commands did not start")
        yield served
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
