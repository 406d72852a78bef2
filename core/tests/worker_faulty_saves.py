"""Trains once with a fault at each file operation of a save in turn, started again each time: a program of its own,
since it forks, and its children have the system ask it about each of their file operations (seccomp).

``python worker_faulty_saves.py FOLDER REQUEST``: REQUEST is JSON with ``checkpoint`` (the recipe's entry),
``faults``, ``stride`` (every so many-th operation) and ``damaged``; prints one JSON object a line.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path

from arctic_training.checkpoint import EngineCheckpoint
from arctic_training.errors import ArcticError
from arctic_training.hookspecs import hookimpl
from arctic_training.manifest import newest_checkpoint
from arctic_training.plugins import create_plugin_manager
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve
from arctic_training.run import Run
from arctic_training.testing import tiny

CALLS = {
    "x86_64": {
        "open": 2, "openat": 257, "write": 1, "pwrite": 18, "writev": 20, "ftruncate": 77, "fsync": 74, "fdatasync": 75,
        "rename": 82, "renameat": 264, "renameat2": 316, "mkdir": 83, "mkdirat": 258, "unlink": 87, "unlinkat": 263,
        "rmdir": 84,
    },
    "aarch64": {
        "openat": 56, "write": 64, "pwrite": 68, "writev": 66, "ftruncate": 46, "fsync": 82, "fdatasync": 83,
        "renameat": 38, "renameat2": 276, "mkdirat": 34, "unlinkat": 35,
    },
}  # fmt: skip
SECCOMP = {"x86_64": 317, "aarch64": 277}
PIDFD_GETFD = 438
BY_DESCRIPTOR = ("write", "pwrite", "writev", "ftruncate", "fsync", "fdatasync")
NOTIFIED = struct.Struct("QIIiIQ6Q")
ANSWER = struct.Struct("QqiI")
RECEIVE, SEND, GO_ON = 0xC0502100, 0xC0182101, 1
FAULTY_STEP = 2
RECIPE = {
    "type": "tiny",
    "model": {"dtype": "fp32", "dropout": 0.2},
    "data": {"sources": [{"type": "tiny"}], "dl_num_workers": 0, "num_proc": 1},
    "optimizer": {"type": "adamw", "learning_rate": 1e-2},
    "scheduler": {"type": "constant"},
    "engine": {"type": "torch"},
    "micro_batch_size": 4,
    "train_iters": 4,
    "train_log_iter_interval": 0,
}
libc = ctypes.CDLL(None, use_errno=True)


def ask_about_files() -> int:
    """From here on this thread's file operations wait for an answer.

    Returns:
        The descriptor that they are asked through.
    """
    machine = platform.machine()
    numbers = sorted(CALLS[machine].values())
    load, equal, give = 0x20, 0x15, 0x06
    program = [struct.pack("HBBI", load, 0, 0, 0)]
    program += [struct.pack("HBBI", equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [struct.pack("HBBI", give, 0, 0, action) for action in (0x7FFF0000, 0x7FC00000)]  # allow, ask
    code = ctypes.create_string_buffer(b"".join(program))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges
    listener = libc.syscall(SECCOMP[machine], 1, 8, described)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


class Fault:
    """What becomes of the operations of a save.

    Args:
        kind: ``none``, ``EIO`` (one fails), ``ENOSPC`` (it and all that take space after it fail), ``kill`` (before
            it), ``torn`` (killed when half of it is written).
        number: of the operation, from 0.
    """

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number = kind, number
        self.operations: list[str] = []

    def answer(self, pid: int, operation: str, path: str, arguments: list[int]) -> int:
        """The error that an operation below the folder of checkpoints gives; 0 to let it happen."""
        here = len(self.operations)
        self.operations.append(f"{operation} {path}")
        takes_space = operation in ("mkdir", "write", "rename", "fsync") or operation == "create"
        if self.kind == "ENOSPC" and here >= self.number and takes_space:
            return errno.ENOSPC
        if here != self.number:
            return 0
        if self.kind == "EIO":
            return errno.EIO
        if self.kind == "torn":
            write_half(pid, arguments)
        if self.kind in ("torn", "kill"):
            os.kill(pid, signal.SIGKILL)
            raise ProcessLookupError  # an answer might let the operation happen yet
        return 0


def write_half(pid: int, arguments: list[int]) -> None:
    data = memory(pid, arguments[1], arguments[2] // 2)
    descriptor = libc.syscall(PIDFD_GETFD, os.pidfd_open(pid), arguments[0], 0)
    os.write(descriptor, data)
    os.close(descriptor)


def memory(pid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(address)
        return file.read(size)


def text_at(pid: int, address: int) -> str:
    """What stands in memory up to a zero byte, which may come on the next page."""
    text = b""
    while b"\0" not in text:
        begin = address + len(text)
        text += memory(pid, begin, 4096 - begin % 4096)
    return text.partition(b"\0")[0].decode()


def path_of(pid: int, name: str, arguments: list[int]) -> tuple[str, str]:
    """An operation's plain name and the path that it is about."""
    plain = name.removesuffix("2").removesuffix("at").removeprefix("p").removesuffix("v")
    if name in BY_DESCRIPTOR:
        return plain, os.readlink(f"/proc/{pid}/fd/{arguments[0]}")
    is_at = name.endswith(("at", "at2"))
    address = arguments[1] if is_at else arguments[0]
    text = text_at(pid, address)
    folder = ctypes.c_int(arguments[0]).value if is_at else -100
    base = os.readlink(f"/proc/{pid}/cwd" if folder == -100 else f"/proc/{pid}/fd/{folder}")
    if plain == "open" and arguments[2 if is_at else 1] & os.O_CREAT:
        plain = "create"
    return plain, os.path.join(base, text)


def supervise(process: int, listener: int, fault: Fault, folder: Path) -> None:
    """Answer the threads of a process until it is gone."""
    names = {number: name for name, number in CALLS[platform.machine()].items()}
    poll = select.poll()
    poll.register(listener)
    while poll.poll()[0][1] & select.POLLIN:
        notified = bytearray(NOTIFIED.size)
        try:
            fcntl.ioctl(listener, RECEIVE, notified)
            number, thread, _, call, _, _, *arguments = NOTIFIED.unpack(notified)
            operation, path = path_of(thread, names[call], arguments)
            is_ours = Path(path).is_relative_to(folder)
            name = os.path.relpath(path, folder)
            error = fault.answer(process, operation, name, arguments) if is_ours else 0
            fcntl.ioctl(listener, SEND, ANSWER.pack(number, 0, -error, 0 if error else GO_ON))
        except (FileNotFoundError, ProcessLookupError):  # killed meanwhile
            continue
    os.close(listener)


class Nested(EngineCheckpoint):
    """Writes into a folder of its own as well, as sharded kinds do."""

    name = "nested"

    def save(self, model):
        super().save(model)
        folder = self.checkpoint_dir / "shards"
        folder.mkdir()
        (folder / "shard-0").write_text("weights")


class AsksFromTheSave:
    """Has the operations of one save supervised."""

    def __init__(self, door: socket.socket) -> None:
        self.door = door

    @hookimpl(trylast=True)
    def arctic_before_save(self, path, step, trainer):
        if step == FAULTY_STEP:
            socket.send_fds(self.door, [b"x"], [ask_about_files()])


def train(plugins, recipe: dict, fault: Fault | None = None) -> dict:
    """Train in a forked process.

    Returns:
        Its exit ``code``, and what it told: ``error``, or ``weights``, ``losses`` and the step that it went on from.
    """
    ours, theirs = socket.socketpair()
    told = Path("told.json")
    told.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            ours.close()
            if fault is not None:
                plugins.register(AsksFromTheSave(theirs), "asks")
            code = train_here(plugins, recipe, told)
        except BaseException:  # noqa: BLE001 - told on standard error, with an exit code of its own
            traceback.print_exc()
        finally:
            os._exit(code)
    theirs.close()
    if fault is not None:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if descriptors:
            supervise(pid, descriptors[0], fault, Path(recipe["checkpoint"]["output_dir"]))
    _, status = os.waitpid(pid, 0)
    ours.close()
    found = json.loads(told.read_text()) if told.exists() else {}
    return {"code": os.waitstatus_to_exitcode(status), **found}


def train_here(plugins, recipe: dict, told: Path) -> int:
    run = Run(resolve(load_recipe(recipe), plugins))
    losses = {}

    class Keeps:
        @hookimpl
        def arctic_step_end(self, step, metrics, trainer):
            losses[step] = metrics["loss"]

    keeps = Keeps()
    plugins.register(keeps, "keeps")
    try:
        run.execute()
    except ArcticError as error:
        told.write_text(json.dumps({"error": str(error)}))
        return error.exit_code
    finally:
        plugins.unregister(keeps)
    digest = hashlib.sha256()
    for tensor in run.trainer.model_unwrapped.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    told.write_text(json.dumps({"weights": digest.hexdigest(), "losses": losses, "first_step": run.first_step}))
    return 0


def main(folder: Path, request: dict) -> None:
    import torch

    os.chdir(folder)
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    plugins = create_plugin_manager()
    plugins.register(tiny, "tiny")
    plugins.register_classes([Nested], "nested")
    kept, before = folder / "kept", folder / "before"
    checkpoint = request["checkpoint"] | {"type": "nested", "output_dir": str(kept)}
    recipe = RECIPE | {"checkpoint": checkpoint}
    until = {step: recipe | {"exit_iteration": step} for step in (1, FAULTY_STEP)}

    def tell(**facts) -> None:
        print(json.dumps(facts), flush=True)

    whole = Path("whole.json")  # in this process, so that all children have what is imported on the way
    tell(fault="left alone", code=train_here(plugins, recipe, whole), **json.loads(whole.read_text()))
    shutil.rmtree(kept)
    train(plugins, until[1])
    shutil.copytree(kept, before)
    if request["damaged"]:  # a newer one that the save has to put away
        shutil.copytree(before / "global_step_1", before / f"global_step_{FAULTY_STEP}")
        (before / f"global_step_{FAULTY_STEP}/engine.pt").write_bytes(b"short")

    def attempt(kind: str, number: int) -> Fault:
        shutil.rmtree(kept)
        shutil.copytree(before, kept)
        fault = Fault(kind, number)
        ended = train(plugins, until[FAULTY_STEP], fault)
        newest, passed_over = newest_checkpoint(kept, resumable=True)
        again = train(plugins, recipe)
        tell(
            fault=kind,
            number=number,
            operation=fault.operations[number] if number < len(fault.operations) else "",
            ended=ended,
            newest=newest.name if newest else None,
            passed_over=[reason for _, reason in passed_over],
            again=again,
            left=sorted(path.name for path in kept.iterdir()),
        )
        return fault

    operations = attempt("none", 0).operations
    tell(fault="recorded", operations=operations)
    for kind in request["faults"]:
        for number in range(0, len(operations), request["stride"]):
            if kind != "torn" or operations[number].startswith("write"):
                attempt(kind, number)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), json.loads(sys.argv[2]))
