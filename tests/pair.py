"""Two processes of a data-parallel run, forked from the tests: they need not import torch again.

done = run_pair(lambda: cli.main(words), "torchrun", tmp_path); done.codes == [0, 0]
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port

from segrow.cli import guarded

LAUNCHERS = ("torchrun", "SLURM", "an earlier call in this program")
LIMIT_S = 90  # on a busy machine; a hang is longer


@dataclass(frozen=True)
class Pair:
    """How they ended: exit codes, what they said on stderr, and how long it took."""

    codes: list[int | None]
    said: list[str]
    seconds: float


def environment(by: str, rank: int, port: int) -> dict[str, str]:
    """What a launcher tells each of two processes on one machine."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if by == "SLURM":
        slurm = {"NTASKS": "2", "NNODES": "1", "NODEID": "0", "PROCID": str(rank), "LOCALID": str(rank)}
        return {**where, **{f"SLURM_{name}": value for name, value in slurm.items()}}
    ours = {**where, "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    if by != "torchrun":
        return ours
    agent = {"RUN_ID": "none", "USE_AGENT_STORE": "True", "RESTART_COUNT": "0"}
    named = {f"TORCHELASTIC_{name}": value for name, value in agent.items()}
    return {**ours, **named, "RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}


def _begin(body: Callable[[], int], given: dict[str, str], said: Path) -> None:
    os.environ.update(given)
    torch.set_num_threads(1)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(os.open(said if number == 2 else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not what pytest put there
    code = guarded(body, resumable=True)
    sys.stderr.flush()
    os._exit(code)


def run_pair(body: Callable[[], int], by: str, folder: Path) -> Pair:
    """Both run `body` as a command does; one that hangs fails the test."""
    fork = multiprocessing.get_context("fork")
    port = find_free_network_port()
    said = [folder / f"stderr-{rank}" for rank in range(2)]
    with ExitStack() as stack:
        if by == "torchrun":  # its agent has the store
            store = torch.distributed.TCPStore(
                "127.0.0.1", port, is_master=True, timeout=timedelta(seconds=LIMIT_S), wait_for_workers=False
            )
            stack.callback(lambda: store)
        began = time.monotonic()
        pair = [
            fork.Process(target=_begin, args=(body, environment(by, rank, port), said[rank]))
            for rank in range(2)
        ]
        for process in pair:
            process.start()
        for process in pair:
            process.join(LIMIT_S)
        seconds = time.monotonic() - began
        hanging = [process for process in pair if process.is_alive()]
        for process in hanging:
            process.kill()
        texts = [path.read_text() for path in said]
        if hanging:
            pytest.fail(f"still running after {LIMIT_S} s: {texts}")
    return Pair([process.exitcode for process in pair], texts, seconds)
