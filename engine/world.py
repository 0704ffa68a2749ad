"""Which of the processes of one run this is, as `torchrun` tells it in the environment. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass

_TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class World:
    """The processes that train one run together; by default a single one.

    Attributes:
        rank: of this process, from 0; rank 0 leads and is the only one that writes.
        size: how many there are.
        local_rank, local_size: the same, among those on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def device_of(self, local_rank: int, device: str) -> str:
        """The device of a process on this machine: one GPU each, where there are several processes.

        Args:
            device: resolved, of the run: `cpu` or `cuda:N`.
        """
        return device if self.size == 1 or device == "cpu" else f"cuda:{local_rank}"

    def devices(self, device: str) -> tuple[str, ...]:
        """All devices that the run uses on this machine, each once."""
        return tuple(dict.fromkeys(self.device_of(i, device) for i in range(self.local_size)))


ALONE = World()


def this_world() -> World:
    """What `torchrun` told this process; a world of one when it was started without."""
    names = (*_TOLD, "MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names):
        return ALONE
    return World(*(int(os.environ[name]) for name in _TOLD))
