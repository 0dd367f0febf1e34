"""The teacher of a distillation: read, and compared with its student, before any training."""

from dataclasses import dataclass

from utils.core.errors import UserError
from utils.distillation.links import Link, links
from utils.distillation.losses import KDSTR
from utils.loading import Loaded, load_model
from utils.network.darknet import Darknet
from utils.network.file_kind import NoCfgError, is_checkpoint
from utils.network.shapes import output_shapes


def _able(anchors: bool, outputs: bool, maps: bool) -> str:
    """Which strategies can be used, in words. anchors: whether the student has anchors; outputs, maps: whether outputs can be
    compared, and feature maps."""
    able = [str(number) for number, strategy in KDSTR.items()
            if (anchors or not strategy.anchored) and (outputs or not strategy.outputs)
            and (maps or not strategy.maps)]  # fmt: skip
    if not able:
        return "no other --KDstr can either"
    *most, last = able
    return f"--KDstr {', '.join(most)}{' and ' if most else ''}{last} can"


@dataclass
class Teacher:
    """A trained network. heads: for each head of the student the number of the teacher's; maxabs: whether
    it was trained on images in -1..1, None if it doesn't say; parameters: their number."""

    model: Darknet
    heads: list[int]
    links: list[Link]
    maxabs: bool | None
    parameters: int


@dataclass(frozen=True)
class DistillationOptions:
    """What is learned from whom; see utils.scripts.distillation for the flags of the same names."""

    t_cfg: str = ""
    t_weights: str = ""
    KDstr: int | None = None
    kd_weight: float = 1.0
    kd_temperature: float | None = None
    kd_small: float = 1.0


def load_teacher(options: DistillationOptions, student: Darknet, gray: bool) -> Teacher:
    """The teacher of --t_cfg and --t_weights. gray: whether the student was asked to see one-channel images.

    Raises UserError, naming what differs and which strategies don't mind, where --KDstr can't be used with this student.
    """
    name = options.t_weights
    own = is_checkpoint(name)
    if not own and not options.t_cfg:
        raise UserError(f"{name}: the teacher's weights carry no cfg; name the one they belong to with --t_cfg")
    try:
        loaded = load_model(options.t_cfg, name, gray=gray and not own)
    except NoCfgError:
        raise NoCfgError(f"teacher: {name}", "--t_cfg") from None
    except UserError as error:
        raise UserError(f"teacher: {error}") from None
    model, strategy = loaded.model, KDSTR[options.KDstr]
    _check_inputs(student, loaded, name)
    size = 32 * student.max_stride
    shared = links(student.defs, model.defs, size)
    anchors = student.defs.yolo_indices() == student.defs.head_indices()
    reason, heads = _match_heads(student, model, size)
    able = _able(anchors, not reason, bool(shared))
    if strategy.anchored and not anchors:
        kinds = student.defs.heads_named()
        raise UserError(
            f"{name}: --KDstr {options.KDstr} is about objectness and anchors, which {kinds} heads do without; {able}"
        )
    if strategy.outputs and reason:
        raise UserError(f"{name}: --KDstr {options.KDstr} compares outputs, but {reason}; {able}")
    if strategy.maps and not shared:
        raise UserError(f"{name}: --KDstr {options.KDstr} compares feature maps, but teacher and student have none of the same "
                        f"stride; {able}")  # fmt: skip
    parameters = sum(p.numel() for p in model.parameters())
    return Teacher(model, heads, shared if strategy.maps else [], loaded.settings.get("maxabs"), parameters)


def _check_inputs(student: Darknet, teacher: Loaded, name: str) -> None:
    theirs, mine = teacher.model.defs.net.channels, student.defs.net.channels
    if theirs != mine:
        raise UserError(f"{name}: the teacher reads images of {theirs} channels, the student of {mine} (--gray-scale); "
                        "train one of them as the other")  # fmt: skip
    if student.max_stride % teacher.model.max_stride:
        raise UserError(f"{name}: the teacher needs images whose sides are multiples of {teacher.model.max_stride}, the "
                        f"student's are multiples of {student.max_stride}: they can't see the same ones")  # fmt: skip


def _match_heads(student: Darknet, teacher: Darknet, size: int) -> tuple[str, list[int]]:
    """("", number of the teacher's head for each of the student's), or (why they can't be compared, [])."""
    mine, theirs = _strides(student, size), _strides(teacher, size)
    if sorted(mine) != sorted(theirs):
        return f"the teacher has {_heads(theirs)}, the student {_heads(mine)}", []
    order = sorted(range(len(theirs)), key=theirs.__getitem__)
    heads = [0] * len(mine)
    for position, number in zip(sorted(range(len(mine)), key=mine.__getitem__), order, strict=True):
        heads[position] = number
    for head, number in zip(student.heads, heads, strict=True):
        other = teacher.heads[number]
        if head.classes != other.classes:
            return f"the teacher has {other.classes} classes, the student {head.classes}", []
        kinds = head.definition.kind, other.definition.kind
        if kinds[0] != kinds[1]:
            return f"the teacher has [{kinds[1]}] heads, the student [{kinds[0]}]", []
        key = head.unlike(other)
        if key:
            return f"the {key} at stride {mine[student.heads.index(head)]} differ", []
    return "", heads


def _strides(model: Darknet, size: int) -> list[int]:
    shapes = output_shapes(model.defs, size, size)
    return [size // shapes[i][1] for i in model.defs.head_indices()]


def _heads(strides: list[int]) -> str:
    return f"{len(strides)} head{'s' * (len(strides) > 1)} of stride {', '.join(map(str, sorted(strides)))}"
