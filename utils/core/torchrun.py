"""What the processes that torchrun started know of each other while each does its own: who speaks, and what one has made.

They tell it by torchrun's own store, which is there before they join in a group and after one of them has failed, and in which
one may wait for another as long as it takes; a collective would be given up after minutes.
"""

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_SPOKEN = timedelta(seconds=10)  # longer than it takes to print
_LONG = timedelta(days=30)  # torchrun ends those that wait for one that has failed
_numbers = itertools.count()


def several() -> bool:
    """Whether torchrun started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@functools.cache
def _store() -> Any:
    """A torch.distributed.Store, by a connection of this module's own: one that waits is blocked for all others."""
    from torch.distributed.rendezvous import rendezvous  # which a PyTorch built without torch.distributed doesn't have

    return next(rendezvous("env://"))[0]


def fail_once(say: Callable[[], None]) -> None:
    """Call `say` in the first of all processes that fails; in the others, which the same error or its consequences reach, wait
    until that is done, since torchrun ends all as soon as one has ended."""
    try:
        store = _store()
        first = store.add("darkedge/failures", 1) == 1
    except (RuntimeError, ValueError):  # torchrun has gone, or it wasn't torchrun
        first, store = os.environ.get("RANK", "0") == "0", None
    if first:
        say()
    if store is not None:
        with contextlib.suppress(RuntimeError):
            store.set("darkedge/spoken", "1") if first else store.wait(["darkedge/spoken"], _SPOKEN)


def made_once_a_machine(make: Callable[[], Any]) -> Any:
    """What `make` returns, anything that json can hold, in one process of this machine and then in all of them; they wait for
    each other, those of other machines as well. To be called by all processes in the same order."""
    if not (several() and dist.is_initialized() and "LOCAL_RANK" in os.environ):
        return make()
    own, machines, number = os.environ["GROUP_RANK"], int(os.environ["GROUP_WORLD_SIZE"]), next(_numbers)
    if os.environ["LOCAL_RANK"] == "0":
        _store().set(f"darkedge/made/{number}/{own}", json.dumps(make()))
    _store().wait([f"darkedge/made/{number}/{machine}" for machine in range(machines)], _LONG)
    return json.loads(_store().get(f"darkedge/made/{number}/{own}"))


def wait_for_all() -> None:
    """Return once every process has come here. To be called by all of them in the same order."""
    number = next(_numbers)
    _store().set(f"darkedge/here/{number}/{os.environ['RANK']}", "1")
    _store().wait([f"darkedge/here/{number}/{rank}" for rank in range(int(os.environ["WORLD_SIZE"]))], _LONG)
