"""utils.network.checkpoint: every field is looked at when a checkpoint is read, and what other programs write is read, too."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_train import here, interrupt_at, train_with  # noqa: F401
from tests.tiny import RESIDUAL, network
from utils.core.errors import UserError
from utils.loading import load_model
from utils.network.cfg import write_cfg
from utils.network.checkpoint import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from utils.network.darknet import Darknet

STATE = {"module_list.0.Conv2d.bias": torch.zeros(2)}
WHOLE = {
    "model": STATE, "cfg": RESIDUAL, "cfg_name": "net.cfg", "names": ["cat", "dog"], "seen": 7, "epoch": 3, "class_term": True,
    "settings": {"img_size": 64, "gray": False, "maxabs": True, "stretch": False, "class_map50": [0.5, 1.0]},
    "quantization": None, "best_fitness": 0.5, "training_results": "", "hyp": {"lr0": 0.1}, "args": {"epochs": 4},
    "finished": True,
}  # fmt: skip


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0b", "\x1e"])
def test_names_that_only_python_splits_are_one_line(end):
    found = Checkpoint.of(WHOLE | {"cfg_name": f"a{end}b.cfg", "names": [f"a{end}b", "c"]}, "x.pt")
    assert (found.cfg_name, found.names) == (f"a{end}b.cfg", [f"a{end}b", "c"])


def test_a_whole_one_gives_typed_fields():
    found = Checkpoint.of(WHOLE, "x.pt")
    assert (found.path, found.cfg, found.names, found.seen, found.epoch) == ("x.pt", RESIDUAL, ["cat", "dog"], 7, 3)
    assert found.settings == WHOLE["settings"]
    assert (found.quantization, found.best_fitness, found.finished, found.args) == ({}, 0.5, True, {"epochs": 4})
    assert found.class_term
    assert found.tensors.keys() == STATE.keys()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("cfg", 5, "cfg is 5, but should be a text"),
        ("cfg", torch.zeros(2), r"cfg is a tensor \(2,\) of float32, but should be a text"),
        ("cfg_name", "a\nb", "cfg_name is the text 'a.nb', but should be a text of one line"),
        ("names", {"0": "cat"}, "names is a dict, but should be a list"),
        ("names", ["cat", 5], r"names\[1\] is 5, but should be a text"),
        ("names", ["cat", None], r"names\[1\] is missing"),
        ("seen", -1, "seen is -1, but should be a whole number of at least 0"),
        ("seen", 2**70, "seen is a number of more than 64 bits"),
        ("epoch", float("nan"), "epoch is nan, but should be a whole number of at least -1"),
        ("epoch", True, "epoch is True"),
        ("best_fitness", "high", "best_fitness is the text 'high', but should be a finite number"),
        ("best_fitness", 10**400, "best_fitness is a number of more than 64 bits"),
        ("settings", 3.5, "settings is 3.5, but should be named values"),
        ("settings", {"img_size": 0}, "settings.img_size is 0, but should be a whole number of at least 1, at most 8192"),
        ("settings", {"gray": "no"}, "settings.gray is the text 'no', but should be true or false"),
        (
            "settings",
            {"class_map50": [1.5]},
            r"settings.class_map50\[0\] is 1.5, but should be a finite number between 0 and 1",
        ),
        ("quantization", 3.5, "quantization is 3.5, but should be named values"),
        ("finished", 2, "finished is 2, but should be true or false"),
        ("args", ["--epochs"], "args is a list, but should be named values"),
        ("model", 5, "holds no weights"),
        ("model", {"a": 5}, "holds no weights"),
        ("model", {"a": torch.zeros(1, dtype=torch.complex64)}, "a is no plain tensor of real numbers"),
        ("model", {"a": torch.zeros(3).to_sparse()}, "a is no plain tensor of real numbers"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(field, value, message):
    with pytest.raises(UserError, match=rf"^x\.pt: {message}") as error:
        Checkpoint.of(WHOLE | {field: value}, "x.pt")
    assert "\n" not in str(error.value)


def test_what_is_missing_or_none_has_its_default():
    assert Checkpoint.of({"model": STATE} | dict.fromkeys(set(WHOLE) - {"model"}), "x.pt") == Checkpoint(
        path="x.pt", tensors=STATE
    )


@pytest.mark.parametrize("layout", ["plain", "state_dict", "dialect", "parallel"])
def test_other_programs_checkpoints_load(layout, tmp_path):
    """The layout of the dialect's older suites: numbers of NumPy's, an optimizer nobody needs, no cfg."""
    model = network(RESIDUAL)
    state = model.state_dict()
    dialect = {"epoch": 99, "best_fitness": np.array([0.5]), "training_results": "1 2 3\n", "model": state, "optimizer": None}
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    content = {"plain": state, "state_dict": {"state_dict": state}, "dialect": dialect, "parallel": {"model": parallel}}[layout]
    torch.save(content, tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt")
    assert (found.epoch, found.best_fitness) == ((99, 0.5) if layout == "dialect" else (-1, None))
    (tmp_path / "x.cfg").write_text(RESIDUAL)
    loaded = load_model(tmp_path / "x.cfg", tmp_path / "x.pt").model
    assert all(torch.equal(a, b) for a, b in zip(state.values(), loaded.state_dict().values(), strict=True))


TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8]),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4), TENSORS,
    st.sampled_from([np.float64(0.5), np.int64(3), np.bool_(True), np.array([1.0]), np.array([]), 10**400, -(2**63) - 1]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from([*WHOLE, *WHOLE["settings"], "train_model", "optimizer", "rng", "state_dict"]), st.text(max_size=4)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4), st.dictionaries(st.integers(), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(list(WHOLE)), TREES, min_size=1, max_size=3))
def test_any_tree_in_any_field_is_a_checkpoint_or_a_users_error(fields):
    with contextlib.suppress(UserError):
        found = Checkpoint.of(WHOLE | fields, "x.pt")
        assert isinstance(found.cfg, str)
        assert all(isinstance(name, str) for name in found.names)
        assert all(isinstance(found.settings.get(k, False), bool) for k in ("gray", "maxabs", "stretch"))
        assert found.epoch >= -1
        assert 0 <= found.seen < 2**63


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_any_tree_alone_is_a_checkpoint_or_a_users_error(tree):
    with contextlib.suppress(UserError):
        Checkpoint.of(tree, "x.pt")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from([*WHOLE, "other"]), tree=TREES)
def test_any_tree_in_a_file_ends_in_a_network_or_a_users_error(tmp_path, field, tree):
    model = network(RESIDUAL)
    content = WHOLE | {"model": model.state_dict(), "cfg": write_cfg(model.defs), field: tree}
    torch.save(content, tmp_path / "x.pt")
    with contextlib.suppress(UserError):
        assert isinstance(load_model("", tmp_path / "x.pt").model, Darknet)


def interrupted(monkeypatch, flags: str) -> dict:
    """The last.pt of a run that was cut short in its third epoch."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 6)
        train_with(f"--epochs 4 {flags}")
    return load_checkpoint("weights/last.pt")


def nodes(tree: object, path: tuple = ()) -> list[tuple]:
    """The path of every value under a dict or a list; of lists of numbers the first alone."""
    items = tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:1] if isinstance(tree, list) else ()
    return [p for key, value in items for p in ((*path, key), *nodes(value, (*path, key)))]


def replaced(tree: object, path: tuple, value: object) -> object:
    """A copy of the tree with another value at `path`."""
    if not path:
        return value
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    copy = {key: replaced(inner, path[1:], value) if key == path[0] else inner for key, inner in pairs}
    return copy if isinstance(tree, dict) else list(copy.values())


@pytest.mark.parametrize("flags", ["", "--adam --s 0.01 --prune 0"])
def test_whatever_is_wrong_in_a_run_is_one_line_or_harmless(here, monkeypatch, flags):  # noqa: F811
    """Each value of the state of a run in turn becomes something else; a run that --resume takes all the same goes on to its
    end, which is cut short here."""
    whole = interrupted(monkeypatch, flags)
    monkeypatch.setattr("train.fit", lambda files, setup, log, say: {})
    rng = np.random.default_rng(0)
    others = ["text", -1, float("nan"), None, {}, [], torch.zeros(2), torch.full((1,), torch.nan), 10**30]
    paths = [p for p in nodes(whole) if p[0] not in ("model", "train_model", "optimizer")]
    paths += [
        ("optimizer",),
        ("optimizer", "state"),
        ("optimizer", "param_groups"),
        ("optimizer", "state", 0),
        ("train_model",),
    ]
    paths += [
        ("optimizer", "state", 0, next(iter(whole["optimizer"]["state"][0]))),
        ("train_model", next(iter(whole["model"]))),
    ]
    messages = []
    for path in paths:
        save_checkpoint("weights/last.pt", replaced(whole, path, others[rng.integers(len(others))]))
        try:
            train_with("--resume", "--workers 0 --device cpu --logdir=")
        except UserError as error:
            messages.append(str(error))
    assert not any("\n" in message for message in messages)
    assert len(messages) > len(paths) / 2
