"""Data-parallel training: several processes with a copy of the model each, and gradients averaged over them.

PyTorch's DistributedDataParallel averages, over NCCL between GPUs and over gloo between CPUs; `engine.wire` carries
what is no tensor. Everything here does nothing in a process that trains alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.errors import LabError, TrainingError
from engine.model import GPT
from engine.wire import Follower, Leader
from engine.world import ALONE, World

TIMEOUT = timedelta(minutes=10)  # of a rank that hangs; one that dies is noticed at once
_SEEDS_APART = 1_000_003  # between the dropout of one rank and the next

Loss = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")


class Team:
    """The processes of one run, as each of them sees them.

    Args:
        world: which of them this is.
        leader, follower: the end of the wire that this process holds; none when it is alone.
    """

    def __init__(self, world: World = ALONE, leader: Leader | None = None, follower: Follower | None = None) -> None:
        self.world = world
        self.leader = leader
        self.follower = follower

    # ------------------------------------------------------------------------------------------ orders (rank 0)

    def order(self, what: str, **values: Any) -> None:
        """Rank 0 tells the others what it is about to do, so that they do their part of it.

        Raises:
            RankLostError: one of them ended.
        """
        if self.leader:
            self.leader.order(what, **values)

    @property
    def request(self) -> str | None:
        """What a signal asked of another rank, which is to stop; None when there is nothing."""
        return "stop" if self.leader and self.leader.stop_asked else None

    def lost_behind(self, error: BaseException) -> str:
        """The sentence for the rank whose end caused an error; "" when none did."""
        if self.leader is None or isinstance(error, LabError) or not isinstance(error, RuntimeError):
            return ""
        lost = self.leader.lost_within(3.0)
        if not lost and "timed out" in str(error).lower():
            return f"A rank gave no answer for {TIMEOUT.total_seconds():.0f} s, though its process is still there."
        return lost

    def ask_to_stop(self) -> None:
        """A rank other than 0 got a signal: rank 0 is to decide at which step all of them stop. For signal handlers."""
        if self.follower:
            self.follower.tell("stop")

    def when_stuck(self, write_down: Callable[[str], None]) -> None:
        """What rank 0 does with the sentence for a lost rank when it cannot end by itself."""
        if self.leader:
            leader = self.leader
            leader.when_stuck(lambda: write_down(leader.lost))

    @property
    def writing(self) -> AbstractContextManager[Any]:
        """Around rank 0's writing of a checkpoint: it is finished even when another rank is lost meanwhile."""
        return self.leader.writing if self.leader else nullcontext()

    # ----------------------------------------------------------------------------------------------- arithmetic

    def parallel_loss(self, model: GPT, device: torch.device, seed: int) -> Loss | None:
        """`model.loss` whose backward pass leaves the gradients' mean over all ranks in the weights; None when alone.

        Each rank's dropout is seeded apart.
        """
        if self.world.size == 1:
            return None
        parallel = DistributedDataParallel(
            _LossModule(model),
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # no second copy of the gradients
        )
        # It orders its buckets anew after the first backward pass, and sums round by their order. One pass of no
        # consequence settles that, so that a resumed run adds up like one that was never stopped.
        nothing = torch.zeros((1, 1), dtype=torch.long, device=device)
        parallel(nothing, nothing).backward()
        model.zero_grad(set_to_none=False)  # they stay in the buckets
        torch.manual_seed(seed + _SEEDS_APART * self.world.rank)
        return cast(Loss, parallel)

    def accumulating(self, loss: Loss, more: bool) -> AbstractContextManager[Any]:
        """Around a forward and backward pass: gradients are averaged in the last one of a step only."""
        return loss.no_sync() if more and isinstance(loss, DistributedDataParallel) else nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all ranks, in place; a GPU does it in its own time."""
        if self.world.size > 1:
            dist.all_reduce(value)
            value /= self.world.size
        return value

    def gather(self, value: T) -> list[T]:
        """The value of each rank, in order, on rank 0; on another rank its own alone."""
        if self.world.size == 1:
            return [value]
        all_ranks: list[Any] | None = [None] * self.world.size if self.world.rank == 0 else None
        dist.gather_object(value, all_ranks)
        return all_ranks or [value]

    def random_states(self, device: torch.device) -> dict[str, Tensor]:
        """The states of all ranks' random generators by name; on ranks other than 0 only their own."""
        states = {"rng.cpu": torch.get_rng_state()}
        if device.type == "cuda":
            states["rng.cuda"] = torch.cuda.get_rng_state(device)
        if self.world.size == 1:
            return states
        found = dict(states)
        for name, own in states.items():
            all_ranks = [torch.empty_like(own) for _ in range(self.world.size)] if self.world.rank == 0 else None
            dist.gather(own, all_ranks)
            found |= {_of_rank(name, rank): state for rank, state in enumerate(all_ranks or [own])}
        return found

    def set_random_states(self, states: dict[str, Tensor], device: torch.device) -> None:
        """Continue where this rank's generators were; a rank that was not there when they were saved keeps its seed.

        Raises:
            KeyError: there is none for rank 0.
        """
        cpu, cuda = (_of_rank(name, self.world.rank) for name in ("rng.cpu", "rng.cuda"))
        if cpu in states or self.world.rank == 0:
            torch.set_rng_state(states[cpu])
        if cuda in states and device.type == "cuda":
            torch.cuda.set_rng_state(states[cuda], device)

    # ---------------------------------------------------------------------------------------------------- ends

    def close(self, *, in_order: bool) -> None:
        """Rank 0 lets the others go: `in_order` when nothing of what was ordered is still under way."""
        if self.leader:
            with contextlib.suppress(RuntimeError):
                if in_order:
                    self.leader.order("end")
            self.leader.close()
        if in_order and self.world.size > 1:
            dist.destroy_process_group()


SOLO = Team()


def _of_rank(name: str, rank: int) -> str:
    return f"{name}.{rank}" if rank else name


class _LossModule(nn.Module):
    """The loss as a module's forward pass, which is where DistributedDataParallel hooks in."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(tokens, targets)


def connect(world: World) -> Team:
    """Meet the other processes that `torchrun` started.

    Raises:
        TrainingError: they cannot reach each other.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        leader = Leader(world.size, one_machine=world.size == world.local_size) if world.rank == 0 else None
        invitation = [leader.invitation if leader else None]
        dist.broadcast_object_list(invitation, device=torch.device("cpu"))
        if leader:
            leader.welcome()
            return Team(world, leader=leader)
        assert invitation[0]
        return Team(world, follower=Follower(world.rank, invitation[0]))
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"The {world.size} processes of torchrun could not reach each other ({error}). Check that their machines "
            "can connect to one another, and the rendezvous address."
        ) from error
