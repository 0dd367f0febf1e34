"""What a .pt file of another program is, in words, and where its network lies: by the names in its pickle, which aren't run.

file -- read_torch_file --> Records -- Foreign.of --> words, family; the network's modules and tensors
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.core.commands import command
from utils.core.errors import UserError
from utils.network.pickled import Record, TorchFile, attributes, is_tensor, read_torch_file

CAN_BE_CONVERTED = {
    "an Ultralytics YOLOv5": "yolov5", "an Ultralytics YOLOv5u": "yolov5u", "an Ultralytics YOLOv8": "yolov8",
}  # fmt: skip
ONLY = "only YOLOv5 (6.0 and later), YOLOv5u and YOLOv8 detection networks can be converted"
# A layer that one architecture alone has -> what its checkpoints are; the first that is found counts.
ARCHITECTURES = {
    "RTDETRDecoder": "an RT-DETR", "WorldDetect": "a YOLO-World", "YOLOEDetect": "a YOLOE", "YOLOESegment": "a YOLOE",
    "v10Detect": "a YOLOv10", "A2C2f": "a YOLO12", "C3k2": "a YOLO11 (or later)",
    "RepNCSPELAN4": "a YOLOv9", "ELAN1": "a YOLOv9", "SPPCSPC": "a YOLOv7", "IDetect": "a YOLOv7",
    "Focus": "a YOLOv5 (before 6.0)", "BottleneckCSP": "a YOLOv5 (before 6.0)",
    "C2f": "an Ultralytics YOLOv8", "C3": "an Ultralytics YOLOv5",
}  # fmt: skip
TASKS = {
    "Segment": "segmentation",
    "Pose": "pose",
    "OBB": "rotated-box",
    "Classify": "classification",
}  # layer -> what it is for
OWNERS = ("ultralytics.", "models.yolo.", "yolov5.")  # packages of their classes
PARTS = {"Conv", "C3", "C2f", "Bottleneck", "SPPF", "Concat", "Detect", "DFL"}  # of the architectures that can be converted
# The same of a state dict: what one of its names begins with.
NAMES = {
    r"\d+\.proto\.": "a segmentation network", r"\d+\.one2one_cv2\.": "a YOLOv10", r"\d+\.linear\.": "a classification network",
    r"\d+\.cv4\.": "a pose or rotated-box network", r"0\.conv\.conv\.": "a YOLOv5 (before 6.0)",
    r"24\.m\.0\.weight": "an Ultralytics YOLOv5", r"24\.dfl\.conv\.weight": "an Ultralytics YOLOv5u",
    r"22\.dfl\.conv\.weight": "an Ultralytics YOLOv8",
    r"\d+\.dfl\.": "a network with YOLOv8's head on another architecture",
}  # fmt: skip
# What Python's own library lends to pickles that hold nothing but data; getattr is how a method is pickled, by its name.
DATA_MODULES = {"collections", "copyreg", "copy_reg", "datetime", "decimal", "enum", "fractions", "logging", "pathlib", "uuid"}
DATA_NAMES = {"argparse.Namespace", "types.SimpleNamespace", "_codecs.encode", "functools.partial"} | {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "object",
                 "range", "set", "slice", "str", "tuple")
}  # fmt: skip
NUMBERED = re.compile(r"((?:[^\d.][^.]*\.)*)(\d+(?:\..*)?)$")  # model.model.0.conv: before the number, from it on
UNKNOWN = "is a state dict of a network that isn't known here"
MOST_MODULES = 10_000  # of a network; a pickle with more refers to itself


@dataclass
class Foreign:
    """A file of torch.save that another program wrote.

    words: that it is a network of some kind, or holds something else; is_network: whether it is a network's; family: yolov5,
    yolov5u or yolov8 if convert.py can take it. modules and tensors: the network's, by names that begin with a module's number,
    such as 2.m.0.cv1.conv; facts: what else the checkpoint holds, and the attributes of the network's outermost modules.
    """

    file: TorchFile
    words: str
    is_network: bool = False
    family: str = ""
    modules: dict[str, Record] = field(default_factory=dict)
    tensors: dict[str, Record] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, path: str | Path) -> "Foreign":
        """Look at a file; UserError for a damaged one."""
        file = read_torch_file(path)
        code = next(filter(_is_code, file.origins), None)
        if file.is_program:
            return cls(file, "is a TorchScript archive, a program; give the .pt that it was made from")
        if code:
            return cls(file, f"holds more than tensors and numbers: it would run {code}; nothing of it was run or loaded")
        root = _root(file.content)
        if _is_module(root):
            return cls._of_module(file, root)
        if root is not None:
            return cls._of_state(file, root)
        has_optimizer = not attributes(file.content).keys().isdisjoint(("optimizer", "param_groups"))
        other = "an optimizer" if has_optimizer else file.content.origin if isinstance(file.content, Record) else ""
        return cls(file, f"holds {other and f'{other} and '}no weights of a network")

    @classmethod
    def _of_module(cls, file: TorchFile, root: Record) -> "Foreign":
        everything = dict(_walk(root, file.path))
        modules = _numbered(everything)
        layers = {module.kind for module in everything.values()}
        strange = {m.kind for m in modules.values() if not m.origin.startswith("torch.nn.")} - PARTS
        name = next((ARCHITECTURES[layer] for layer in ARCHITECTURES if layer in layers), "")
        if not name and not root.origin.startswith(OWNERS):
            return cls(file, f"holds more than tensors and numbers, so it isn't loaded (a pickled {root.origin})")
        if not name and not strange and "Bottleneck" in layers:
            name = "an Ultralytics YOLOv3"
        if "DFL" in layers and name in ("an Ultralytics YOLOv5", "an Ultralytics YOLOv3"):
            name += "u"  # its body with YOLOv8's head
        task = next((TASKS[layer] for layer in TASKS if {layer, f"{layer}26"} & layers), "")
        words = " ".join(filter(None, ("is", name or "an Ultralytics", task, "checkpoint")))
        if strange and not task and (not name or name in CAN_BE_CONVERTED):
            words += f" with layers of its own yaml ({', '.join(sorted(strange)[:3])})"
        elif not name:
            words += " of another architecture"
        if strange or task or name not in CAN_BE_CONVERTED:
            return cls(file, words, is_network=True)
        tensors = {f"{n}.{k}": t for n, module in modules.items() for k, t in _own_tensors(module)}
        outer = (module for path, module in everything.items() if not NUMBERED.match(path))  # a wrapper's network is within it
        facts = [attributes(file.content), *map(attributes, outer)]
        return cls(file, words, True, CAN_BE_CONVERTED[name], modules, tensors, facts)

    @classmethod
    def _of_state(cls, file: TorchFile, root: Any) -> "Foreign":
        tensors = _numbered({name: value for name, value in attributes(root).items() if is_tensor(value)})
        name = named_after(tensors)
        if not name:
            return cls(file, UNKNOWN, is_network=True)
        facts = [attributes(file.content)]
        return cls(file, f"is {name} as a state dict", True, CAN_BE_CONVERTED.get(name, ""), {}, tensors, facts)

    @property
    def refusal(self) -> UserError:
        """Why no command but convert.py, if any, can use it."""
        hint = (
            f"; make a cfg and a checkpoint of it first: {command('convert.py', weights=self.file.path)}" if self.family else ""
        )
        hint = f"; {ONLY}" if self.is_network and not self.family else hint
        return UserError.at(self.file.path, f"{self.words}{hint}")


def named_after(names: Any) -> str:
    """What network the names of a state dict belong to, as in `ARCHITECTURES`; "" for none that is known."""
    numbered = [name for name in map(_from_number, names) if name]
    return next((NAMES[start] for start in NAMES if any(re.match(start, name) for name in numbered)), "")


def _from_number(name: str) -> str:
    """A module's name from its number on: model.model.0.conv -> 0.conv; "" for one without a number."""
    found = NUMBERED.match(name)
    return found[2] if found else ""


def _numbered(named: dict[str, Record]) -> dict[str, Record]:
    """By names from their numbers on, those that have one; of several networks the first one's."""
    found = {match: value for name, value in named.items() if (match := NUMBERED.match(name))}
    first = next(iter(found))[1] if found else ""
    return {match[2]: value for match, value in found.items() if match[1] == first}


def _is_code(origin: str) -> bool:
    """Whether a pickle that names this asks for more of Python's library than kinds of data."""
    module = origin.partition(".")[0]
    is_pythons = module in sys.stdlib_module_names or module in ("__builtin__", "copy_reg")
    return is_pythons and module not in DATA_MODULES and origin not in DATA_NAMES


def _is_module(value: Any) -> bool:
    return isinstance(value, Record) and "_modules" in attributes(value)


def _root(content: Any) -> Any:
    """The outermost module, or else the state dict, of a checkpoint; averaged weights before others. None if there is none."""
    held = attributes(content)
    places = [content, *(held.get(key) for key in ("ema", "model", "state_dict", "model_state_dict"))]
    states = (place for place in places if any(map(is_tensor, attributes(place).values())))
    return next(filter(_is_module, places), None) or next(states, None)


def _walk(module: Record, path: str, name: str = "") -> Iterator[tuple[str, Record]]:
    """(name, module) of a module and all those in it; UserError where that never ends."""
    waiting, count = [(name, module)], 0
    while waiting:
        name, module = waiting.pop()
        yield name, module
        count += 1
        if count > MOST_MODULES:
            raise UserError.at(path, "damaged: its modules contain one another")
        inner = attributes(attributes(module)["_modules"])
        waiting += [(f"{name}.{k}".lstrip("."), m) for k, m in inner.items() if _is_module(m)]


def _own_tensors(module: Record) -> Iterator[tuple[str, Record]]:
    """(name, tensor) of a module's own parameters and buffers."""
    for kind in ("_parameters", "_buffers"):
        yield from ((k, t) for k, t in attributes(attributes(module).get(kind)).items() if is_tensor(t))


def convertible(path: str | Path) -> Foreign | None:
    """A checkpoint that convert.py makes a cfg of; None for any other file of torch.save, and for a damaged one."""
    with contextlib.suppress(UserError):
        found = Foreign.of(path)
        return found if found.family else None
    return None


def refused_state(path: str | Path) -> UserError | None:
    """Why no command but convert.py can use a file that holds data alone; None for weights that may be those of some cfg."""
    found = Foreign.of(path)
    return None if found.words == UNKNOWN else found.refusal
