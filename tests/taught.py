"""A teacher, its pruned students, and runs in which they learn, for the tests of distillation."""

from pathlib import Path

import torch

from tests.test_train import BASE
from tests.tiny import NET, conv, head, network
from utils.core.distributed import World
from utils.core.hyp import Hyp
from utils.core.options import options_of
from utils.distillation.distiller import Distiller
from utils.distillation.teacher import DistillationOptions, Teacher
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.pruning.masks import Limits
from utils.pruning.pruner import Amount, Pruner
from utils.training.run import Plan, Run

CPU = torch.device("cpu")
BLOCK = conv(8, 1) + conv(16) + "[shortcut]\nfrom=-3\nactivation=linear\n"
BACKBONE = conv(8, stride=2) + conv(12, stride=2) + conv(16, stride=2) + 2 * BLOCK + conv(20, stride=2)
NECK = "[route]\nlayers=-3\n" + conv(10, 1) + "[upsample]\nstride=2\n[route]\nlayers=-1,8\n" + conv(12)
CFG = NET + BACKBONE + conv(24) + head("1") + NECK + head("0")  # layer 8 ends the stage of stride 8
ONE_HEAD = NET + BACKBONE + conv(18) + head("1")


def pruned(strategy: str, cfg: str = CFG, percent: float = 0.4, shortcuts: int = 0) -> tuple[Darknet, Darknet]:
    """(teacher, student): the student as it comes back from the files that a prune script writes."""
    teacher = network(cfg)
    pruner = Pruner(teacher, strategy, Limits(layer_keep=0.01))
    small = pruner.compact(pruner.choose(Amount(percent, shortcuts)))
    student = Darknet(parse_cfg(write_cfg(small.defs)), 64)
    student.load_state_dict(small.state_dict())
    return teacher, student


def arguments(number: int, weights: str = "t.pt", cfg: str = "") -> DistillationOptions:
    return train_arguments(f"--KDstr {number} --t_weights {weights} --t_cfg={cfg}")


def train_arguments(text: str) -> DistillationOptions:
    import train

    return options_of(DistillationOptions, vars(train.get_parser().parse_args([*BASE.split(), *text.split()])))


def save(model: Darknet, path: Path, **settings: object) -> str:
    save_checkpoint(path, {"model": model.state_dict(), "cfg": write_cfg(model.defs), "settings": settings})
    return str(path)


def make_run(student: Darknet, teacher: Teacher, number: int, dtype: torch.dtype | None = None, **plan: object) -> Run:
    settings = {"epochs": 3, "batch_size": 2, "batches": 4, "img_size": 64} | plan
    run = Run(student, Hyp(), Plan(**settings), CPU, dtype, World())
    run.distil(Distiller(teacher, number, 1.0, None, CPU))
    return run
