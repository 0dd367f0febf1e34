"""tests.imports: no import runs up, sideways or in a circle; and the check sees those that would."""

from pathlib import Path

import pytest

from tests.imports import faults

ROOT = Path(__file__).resolve().parents[1]


def test_every_import_runs_down():
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("place", "text", "fault"),
    [
        ("utils/core/a.py", "from utils.network.cfg import x", "utils/core/a.py:1: core doesn't lie above network"),
        ("utils/network/a.py", "def f():\n    import utils.data.b", "utils/network/a.py:2: network doesn't lie above data"),
        (
            "utils/network/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from utils.training.run import Run",
            "utils/network/a.py:3: network doesn't lie above training",
        ),
        ("utils/training/a.py", "from models import x", "utils/training/a.py:1: utils/ doesn't know the scripts: models"),
        ("utils/hut/a.py", "from utils.core.b import x", "utils/hut/a.py:1: hut is a room of no floor in tests/imports.py"),
        ("utils/core/a.py", "import utils.core.b", "a circle: utils.core.a -> utils.core.b -> utils.core.a"),
        ("utils/training/a.py", "from utils.core import b\nimport torch", ""),
    ],
)  # fmt: skip
def test_what_the_check_says(place, text, fault, tmp_path):
    others = {
        "models.py": "",
        "utils/core/b.py": "",
        "utils/data/b.py": "",
        "utils/network/cfg.py": "",
        "utils/training/run.py": "",
    }
    others["utils/core/b.py"] = "import utils.core.a" if "circle" in fault else ""
    for name, content in (others | {place: text}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert faults(tmp_path) == ([fault] if fault else [])
