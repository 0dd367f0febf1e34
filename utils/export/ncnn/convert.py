"""From an ONNX graph to ncnn's own two files, through pnnx.

A folder holds both and what the suite has to know of the network; ncnn's text format has no place for that.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import onnx_ir as ir

from utils.core.errors import UserError
from utils.core.files import write_text
from utils.core.preparation import Preparation
from utils.export.ncnn.files import BIN, METADATA_FILE, PARAM
from utils.export.onnx.trace import GraphPlan, build, metadata
from utils.loading import Loaded
from utils.network.darknet import Darknet

HEAD = 2  # lines of a .param file before the first layer: `7767517`, and numbers of layers and maps
NAMES = ".:"  # in a layer's kind where pnnx found nothing in ncnn that computes it: torch.roll, aten::roll


def write(folder: Path, loaded: Loaded[Darknet], plan: GraphPlan, prepared: Preparation, half: bool) -> None:
    """Convert a float network to `folder`, which exists; half: weights are stored in 16 bits, half as large.

    Raises UserError where pnnx can't, and for a quantized network.
    """
    with tempfile.TemporaryDirectory() as place:
        graph = Path(place) / "graph.onnx"
        ir.save(build(loaded.model, plan), graph)
        shape = [plan.batch, loaded.model.defs.net.channels, *plan.size]
        run_pnnx(graph, folder, shape, half)
    unknown = [kind for kind in layer_kinds(folder / PARAM) if set(kind) & set(NAMES)]
    if unknown:
        raise UserError(
            f"{loaded.model.defs.name}: pnnx knows nothing in ncnn that computes {unknown[0]}; take another runtime"
        )
    facts = metadata(loaded, plan, prepared, "fp32")
    write_text(folder / METADATA_FILE, json.dumps(facts, indent=1))


def run_pnnx(graph: Path, folder: Path, shape: list[int | None], half: bool) -> None:
    """Convert a graph to both files in `folder`; what pnnx writes besides stays beside the graph. Raises UserError where it
    can't."""
    import pnnx

    wanted = [f"ncnnparam={folder / PARAM}", f"ncnnbin={folder / BIN}", f"fp16={int(half)}"]
    size = ",".join(map(str, shape))
    done = subprocess.run(
        [pnnx.EXEC_PATH, graph.name, f"inputshape=[{size}]f32", *wanted], cwd=graph.parent, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode or not (folder / PARAM).is_file() or not (folder / BIN).is_file():
        said = (done.stderr or done.stdout).decode(errors="replace").split("\n")
        gist = next((line.strip() for line in reversed(said) if line.strip()), f"status {done.returncode}")
        raise UserError(f"pnnx can't convert this network ({gist[:160]})")


def layer_kinds(path: Path) -> list[str]:
    """Kinds of the layers of a .param file, in its order: a layer is a line."""
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()[HEAD:] if line.strip()]
