"""Putting back what a run's checkpoint says of the parts of PyTorch that train: looked at first, then taken over whole."""

from typing import Any

import torch
from torch import Tensor, nn

from utils.core.errors import UserError
from utils.core.fields import Fields, is_plain

# What an optimizer keeps of each parameter, beside a counter of steps all of the parameter's shape.
MEMORIES = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}
SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


def restore_module(module: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """load_state_dict; UserError, beginning with `origin`, for other names or shapes, with the module as it was."""
    own = module.state_dict()
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[0]
        raise UserError.at(origin, f"{odd} is {'missing' if odd in own else 'not known here'}: it belongs to another network")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, but should be {tuple(tensor.shape)}"
            raise UserError.at(origin, f"{name} is {shapes}: it belongs to another network")
    module.load_state_dict(state)


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Fields) -> None:
    """Take over what another optimizer of the same parameters remembers of them. Rates and other options stay: the run's
    hyper-parameters and its schedule have set them. UserError, with the optimizer as it was, for one that doesn't fit."""
    own = optimizer.state_dict()
    groups = saved.items("param_groups")
    if [groups.fields(key).values.get("params") for key in groups.values] != [g["params"] for g in own["param_groups"]]:
        raise UserError.at(saved.origin, "its optimizer has other parameters than this network: it belongs to another run")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = saved.values.get("state")
    if not isinstance(state, dict) or not all(_fits(optimizer, parameters, *item) for item in state.items()):
        raise saved.wrong("state", "what this optimizer remembers of each parameter")
    optimizer.load_state_dict(own | {"state": state})


def _fits(optimizer: torch.optim.Optimizer, parameters: list[Tensor], index: Any, memory: Any) -> bool:
    """Whether `memory` is what the optimizer could remember of its parameter number `index`."""
    if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(memory, dict):
        return False
    if memory.keys() != MEMORIES[type(optimizer)]:
        return False
    return all(
        (value is None and name == "momentum_buffer")
        or (is_plain(value) and value.is_floating_point() and bool(value.isfinite().all())
        and value.shape == (torch.Size() if name == "step" else parameters[index].shape)
        and not (name in ("step", "exp_avg_sq") and bool((value < 0).any())))
        for name, value in memory.items()
    )  # fmt: skip


def restore_scaler(scaler: torch.amp.GradScaler, saved: Fields) -> None:
    """Take over the scale of float16's gradients, where both runs compute in float16."""
    if scaler.is_enabled() and saved.values:
        scaler.load_state_dict({name: saved.required("a number", *SCALER).number(name, least=0) for name in SCALER})


def random_state() -> dict[str, Any]:
    """Where PyTorch's generators stand."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(saved: Fields) -> None:
    """Set PyTorch's generators; CUDA's only where there are as many devices as there were. UserError for what is no state."""
    cuda = saved.items("cuda")
    states = [cuda.tensor(key) for key in cuda.values]
    try:
        torch.set_rng_state(saved.tensor("torch"))
        if states and len(states) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states)
    except (RuntimeError, TypeError):
        raise saved.wrong("torch", "the state of a random generator") from None
