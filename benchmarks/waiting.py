"""How torch's threads should wait for each other: updates of a small network, idle and beside a busy process.

python -m benchmarks.waiting
"""

import os
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from .process import ROOT

SECONDS = 3.0
WAYS = {
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "2,500 turns (segrow)": {"GOMP_SPINCOUNT": "2500"},
    "10,000 turns": {"GOMP_SPINCOUNT": "10000"},
    "300,000 turns (torch's default)": {"GOMP_SPINCOUNT": "300000"},
    "always busily": {"OMP_WAIT_POLICY": "ACTIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = "while True: pass"


def updates() -> float:
    """Updates a second of twelve convolutions of 64 channels, batch 8, 24 x 24."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    for k in range(12):
        layers += [nn.Conv2d(64 if k else 3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    network, images = nn.Sequential(*layers), torch.randn(8, 3, 24, 24)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    done, start = -10, time.perf_counter()
    while done <= 0 or time.perf_counter() - start < SECONDS:
        if done == 0:  # the first ones are not counted
            start = time.perf_counter()
        network(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1
    return done / (time.perf_counter() - start)


def measured(settings: dict[str, str]) -> float:
    """The same in a process of its own, for OpenMP reads its environment once."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "benchmarks.waiting", "--child"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**own, **settings}, check=True
    )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    if sys.argv[1:] == ["--child"]:
        print(updates())
        return
    idle = {name: measured(settings) for name, settings in WAYS.items()}
    with subprocess.Popen([sys.executable, "-c", BUSY]) as other:
        beside = {name: measured(settings) for name, settings in WAYS.items()}
        other.kill()
    table = Table("threads wait", "updates/s, idle", "beside a busy process")
    for name in WAYS:
        table.add_row(name, f"{idle[name]:.1f}", f"{beside[name]:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
