"""What training is made of besides the network: optimizer, schedule, averaged weights, and the state of a run."""

import contextlib
import dataclasses
import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.core.distributed import World, parallel
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.restore import random_state, restore_module, restore_optimizer, restore_random_state, restore_scaler
from utils.detection.loss import DEFAULT
from utils.detection.losses import build_loss
from utils.detection.threshold import CONF_THRES
from utils.distillation.distiller import Distiller
from utils.network.branches import folded
from utils.network.checkpoint import Checkpoint
from utils.network.darknet import Darknet
from utils.pruning.directed import DirectedSparsity
from utils.pruning.promise import Promise
from utils.pruning.sparsity import GammaPenalty, Sparsity
from utils.pruning.sparsity_options import SparsityOptions
from utils.quantized.transform import freeze, freeze_epoch
from utils.training.ema import ModelEma
from utils.training.optimizer import Schedule, build_optimizer

HURT = 1.1  # a network that a gentle epoch makes fitter by more than this factor has far to go
REMEDY = "lower lr0 with --hyp and begin again; last.pt, if there is one, holds the last good epoch"


class DivergedError(UserError):
    """A loss or gradients that are not finite: this training can't go on, another one with other hyper-parameters may."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {REMEDY}")


@dataclass(kw_only=True, frozen=True)
class Plan:
    """How a run trains: the numbers that a resumed run has to have in common with the interrupted one."""

    epochs: int
    batch_size: int  # of all processes together
    batches: int  # an epoch
    img_size: int
    seed: int = 0
    accumulate: int = 0  # batches an optimizer step; 0: as many as make up the nominal batch
    adam: bool = False
    ema: bool = True
    assign: str = DEFAULT
    multi_scale: bool = False
    maxabs: bool = False
    sparsity: SparsityOptions = field(default_factory=SparsityOptions)


class Run:
    """A training in progress: the network and everything that changes with it.

    `forward` is what to call with images; `weights` the network to evaluate and save; `step` counts optimizer steps and
    `epoch` finished epochs. `dtype`: what autocast computes in, None for float32.
    """

    def __init__(
        self, model: Darknet, hyp: Hyp, plan: Plan, device: torch.device, dtype: torch.dtype | None, world: World
    ) -> None:
        self.hyp, self.plan, self.device, self.dtype, self.world = hyp, plan, device, dtype, world
        self.model = model.to(device=device, memory_format=torch.channels_last).train()
        self.forward = parallel(self.model, device, world)
        self.loss = build_loss(self.model, hyp, plan.assign)
        self.accumulate = plan.accumulate or batches_a_step(hyp, plan)
        self.epoch_steps = math.ceil(plan.batches / self.accumulate)
        step_images = plan.batch_size * self.accumulate
        # lr0 is meant for the gradient of a sum over the nominal batch; larger batches are averaged down to it
        self.loss_factor = plan.batch_size * min(1.0, hyp.nominal_batch / step_images)
        self.optimizer = build_optimizer(self.model, hyp, plan.adam, step_images)
        self.schedule = Schedule.plan(hyp, plan.adam, plan.epochs, self.epoch_steps, self.accumulate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.ema = ModelEma(self.model, self.schedule.total, hyp.ema_share) if plan.ema else None
        self.penalty = sparsity_penalty(self.model, plan, hyp.momentum, self.schedule.total)
        self.way = self.schedule.way() if self.penalty else np.zeros(1)
        self.distiller: Distiller | None = None
        self.step, self.epoch = 0, 0
        self.saved = False  # whether last.pt holds this run
        self.best: dict[str, Any] | None = None  # {epoch, map50, map, conf_thres} of the fittest weights

    def distil(self, distiller: Distiller) -> None:
        """Let the model learn from a teacher, too; what the distiller trains along joins the optimizer."""
        self.distiller = distiller
        if distiller.parameters():
            self.optimizer.add_param_group({"params": distiller.parameters(), "weight_decay": 0.0, "name": "adapters"})

    @property
    def averaged(self) -> Darknet:
        """The network as training ends up with it: the averaged one if there is one."""
        return self.ema.module if self.ema else self.model

    @property
    def weights(self) -> Darknet:
        """The network to evaluate and save: a copy without branches (--reparam), else the averaged one itself."""
        return folded(self.averaged)

    @property
    def promise(self) -> Promise | None:
        return self.penalty.promise if self.penalty else None

    @property
    def best_fitness(self) -> float:
        return fitness(self.best) if self.best else -1.0

    def note_evaluation(self, map50: float, mean_map: float, conf_thres: float | None = None) -> bool:
        """Whether the weights that were just evaluated are the fittest so far, or by a promise the ones to keep; if so they
        become `best`."""
        found = {"epoch": self.epoch, "map50": map50, "map": mean_map, CONF_THRES: conf_thres}
        fit = fitness(found)
        if self.promise:
            is_best = self.promise.note(found, fit, self.penalty.share, self.weights)
        else:
            is_best = fit > self.best_fitness
        if not is_best:
            return False
        self.best = found
        return True

    def quicken(self) -> None:
        """Go on at the rate of any training, averaged as in any: where a gentle one is far from what the network can be."""
        usual = Hyp()
        self.hyp = dataclasses.replace(self.hyp, lr0=usual.lr0, lr0_adam=usual.lr0_adam, ema_share=usual.ema_share)
        self.schedule = Schedule.plan(self.hyp, self.plan.adam, self.plan.epochs, self.epoch_steps, self.accumulate)
        if self.ema:
            self.ema.reach(self.schedule.total, usual.ema_share)

    def uses_mosaic(self, epoch: int) -> bool:
        """Mosaic is closed for the last hyp.close_mosaic epochs, at most a fifth of all."""
        closed = min(self.hyp.close_mosaic, self.plan.epochs // 5)
        return self.hyp.mosaic > 0 and epoch < self.plan.epochs - closed

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that this step's images are resized to: with multi-scale 0.67 to 1.5 times their size.

        All batches of one optimizer step share the factor, which depends on seed and step alone.
        """
        if not self.plan.multi_scale:
            return height, width
        stride = self.model.max_stride
        low, high = math.ceil(0.67 * self.plan.img_size / stride), math.floor(1.5 * self.plan.img_size / stride)
        size = random.Random(f"{self.plan.seed} {self.step}").randint(max(low, 1), max(high, 1)) * stride
        factor = size / self.plan.img_size
        return tuple(max(1, round(side * factor / stride)) * stride for side in (height, width))

    def start_epoch(self) -> None:
        """What changes from epoch to epoch besides the images: what learns a box, how strong the penalty on gammas is, and
        whether a quantized network's ranges and statistics still move."""
        if self.model.quantization and self.epoch + 1 >= freeze_epoch(self.plan.epochs):
            freeze(self.model)
        self.loss.start_epoch(self.epoch / self.plan.epochs)
        if self.penalty:
            self.penalty.start_epoch(self.epoch, *self.progress())

    def progress(self) -> tuple[float, float]:
        """How far a gradient of 1 would have moved a weight until now, and in the whole training."""
        return float(self.way[min(self.step, len(self.way) - 1)]), float(self.way[-1])

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss * self.loss_factor).backward()

    def optimizer_step(self) -> None:
        """One step from the accumulated gradients: unscale, clip, penalty on gammas, step, average.

        Raises UserError when the gradients are not finite (with float16 the scaler skips such a step instead).
        """
        self.schedule.apply(self.optimizer, self.step)
        trained = list(self.model.parameters())
        if self.distiller:
            self.distiller.average_gradients()
            trained += self.distiller.parameters()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(trained, self.hyp.clip_grad)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise DivergedError(f"epoch {self.epoch + 1}, optimizer step {self.step + 1}: the gradients are not finite")
        if self.penalty:
            self.penalty.apply()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            self.ema.update_parameters(self.model)
        if self.penalty:
            self.penalty.settle(*self.progress(), self.ema.module if self.ema else None)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs so that `restore` continues exactly here."""
        return {
            "train_model": self.model.state_dict(),
            "ema": {"updates": int(self.ema.n_averaged), "model": self.ema.module.state_dict()} if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"step": self.step, "epoch_steps": self.epoch_steps},
            "scaler": self.scaler.state_dict(),
            "penalty": self.penalty.state() if self.penalty else None,
            "distiller": self.distiller.state() if self.distiller else None,
            "best": self.best,
            "rng": random_state(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where the run that wrote this checkpoint stood.

        Where an epoch has another number of optimizer steps than it had, as with a set of images that has grown, the
        schedule goes on from the same share of its way. Raises UserError for a checkpoint that doesn't hold such a run; this
        one can't be used then.
        """
        state, origin = checkpoint.run, checkpoint.path
        if self.penalty and "penalty" in state:
            self.penalty.restore(state.fields("penalty"))
        if self.promise and self.promise.kept:  # whether they fit is to be known now, not when the run ends
            restore_module(self.weights, self.promise.kept["model"], f"{origin}: the network to keep")
        restore_module(self.model, state.tensors("train_model"), f"{origin}: train_model")
        if self.ema:
            averaged = state.fields("ema")  # without "model" in a file of earlier versions
            restore_module(self.ema.module, averaged.tensors("model") or checkpoint.tensors, f"{origin}: the averaged model")
            self.ema.n_averaged.fill_(averaged.whole("updates"))
        restore_optimizer(self.optimizer, state.fields("optimizer"))
        restore_scaler(self.scaler, state.fields("scaler"))
        if self.distiller and "distiller" in state:
            self.distiller.restore(state.fields("distiller"))
        done = state.fields("scheduler").required("a whole number", "step")
        steps = done.whole("epoch_steps", default=self.epoch_steps, least=1)
        self.step = min(round(done.whole("step") * self.epoch_steps / steps), self.schedule.total)
        self.epoch, self.model.seen = checkpoint.epoch + 1, checkpoint.seen
        if self.epoch >= self.plan.epochs:
            raise state.wrong("epoch", f"less than {self.plan.epochs - 1}, the last of this run")
        best = state.fields("best")
        if best.values:
            best.required("a number", "epoch", "map50", "map")
            self.best = {"epoch": best.whole("epoch"), "map50": best.number("map50"), "map": best.number("map")}
            self.best[CONF_THRES] = best.number(CONF_THRES, default=None, least=0, most=1)
        if self.world.is_main:
            restore_random_state(state.fields("rng"))
        else:  # only the first process's state is saved; the others must not draw what it draws
            torch.manual_seed(self.plan.seed + 1000 * self.epoch + self.world.rank)


def batches_a_step(hyp: Hyp, plan: Plan) -> int:
    """How many batches make up the nominal batch, or fewer where the training would have less than hyp.least_steps steps."""
    wanted = max(1, round(hyp.nominal_batch / plan.batch_size))
    if not hyp.least_steps:
        return wanted
    return max(1, min(wanted, plan.epochs * plan.batches // hyp.least_steps))


def sparsity_penalty(model: Darknet, plan: Plan, momentum: float, steps: int) -> Sparsity | None:
    """What makes the gammas sparse as a plan asks for, None if it doesn't; steps: the optimizer's in the whole training."""
    asked = plan.sparsity
    if asked.directed:
        promise = Promise(asked.max_drop)
        return DirectedSparsity(model, asked.prune, asked.sparse_target, steps, promise, asked.spend, plan.img_size)
    if asked.prune < 0 or not asked.penalised:
        return None
    return GammaPenalty(
        model, asked.prune, asked.s, schedule=asked.sparse_schedule, keep=asked.sparse_keep, target=asked.sparse_target,
        epochs=plan.epochs, momentum=momentum,
    )  # fmt: skip


def fitness(figures: dict[str, Any]) -> float:
    """What best.pt is the best in: mostly mAP@0.5:0.95, with a share of mAP@0.5."""
    return 0.1 * figures["map50"] + 0.9 * figures["map"]
