"""What is done to a pruned network before it is written: refitting (--refit), statistics measured again (--bn-recal)."""

import argparse
from dataclasses import dataclass
from typing import Any

from utils.core.ranges import whole
from utils.network.darknet import Darknet
from utils.pruning.pruner import Choice, Pruner
from utils.scripts.evaluator import Evaluator

STAGES = {"refit": "refitted", "bn_recal": "re-estimated"}  # option and key of --json -> what the network is then called


def add_mending_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("after the cut")
    group.add_argument("--refit", type=whole(0, 1_000_000), default=0, metavar="N",
                       help="fit what reads removed channels to the original network's maps of N training images, by least "
                       "squares")  # fmt: skip
    group.add_argument("--bn-recal", type=whole(0, 1_000_000), default=0, metavar="N",
                       help="measure batch normalisation's statistics again on N training images")  # fmt: skip


@dataclass(frozen=True)
class MendingOptions:
    """On how many training images each of STAGES is done, 0 where it isn't."""

    refit: int = 0
    bn_recal: int = 0

    @property
    def stages(self) -> list[str]:
        """Those of STAGES that are asked for."""
        return [option for option in STAGES if getattr(self, option)]


def mend(
    options: MendingOptions, evaluator: Evaluator, pruner: Pruner, choice: Choice, small: Darknet, option: str
) -> dict[str, Any]:
    """Do what `option`, a key of STAGES, asks for to the compact network `small`, in place; says on what: {images, ...}."""
    if option == "refit":
        images, layers = evaluator.refit(pruner, choice, small, options.refit)
        return {"images": images, "layers": layers}
    return {"images": evaluator.recalibrate(small, options.bn_recal)}


def mended(options: MendingOptions, evaluator: Evaluator, pruner: Pruner, choice: Choice) -> Darknet:
    """The compact network as it would be written."""
    small = pruner.compact(choice)
    for option in options.stages:
        mend(options, evaluator, pruner, choice, small, option)
    return small


def mend_and_measure(options: MendingOptions, evaluator: Evaluator, pruner: Pruner, choice: Choice, small: Darknet,
                     after: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    """Mend `small`, in place: {after, and for each stage {images, before{map50, map}, after{map50, map}} or None}. after: the
    figures of the compact network, of which the mAPs become those of the last stage."""
    figures: dict[str, Any] = dict.fromkeys(STAGES)
    for option in options.stages:
        what = mend(options, evaluator, pruner, choice, small, option)
        found = evaluator.accuracy(small, STAGES[option])
        figures[option] = what | {"before": _maps(after), "after": _maps(found)}
        after = after | found
    return figures | {"after": after}


def _maps(figures: dict[str, Any]) -> dict[str, Any]:
    return {k: figures[k] for k in ("map50", "map")}


def stage_columns(figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(title, {map50, map}) of the compact network and of each stage that it went through."""
    done = [(option, figures[option]) for option in STAGES if figures[option]]
    compact = done[0][1]["before"] if done else figures["after"]
    titles = {"refit": "refitted to {} images", "bn_recal": "BN from {} images"}
    return [("compact", compact)] + [(titles[option].format(stage["images"]), stage["after"]) for option, stage in done]
