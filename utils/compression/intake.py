"""Where compress.py begins earlier: a dataset as its owners publish it becomes a .data file, once."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.compression.options import CompressOptions
from utils.compression.stages import launch
from utils.compression.state import State, lock
from utils.converters.formats import recognise
from utils.core.commands import typed
from utils.core.errors import UserError
from utils.core.files import check_writable, make_folder
from utils.data.data_yaml import dataset_yaml

DATASET = "dataset"  # the stage, and its folder
VALID_SHARE = 0.2  # of the images, held out to measure on, where the dataset holds none out


class Intake:
    """What is done before there is a plan, which counts images. options: the command line, with the .data that was written
    where --data names a folder, or with the .yaml that is there; stage: how, None for a .data file."""

    def __init__(self, options: CompressOptions) -> None:
        """Convert a folder, if none is converted yet. Raises UserError for one that nothing can be made of."""
        self.options, self.stage = options, None
        if not os.path.isdir(options.data):
            return
        named = dataset_yaml(options.data)
        if named:
            self.options = replace(options, data=str(named))
        else:
            self.folder = Path(options.out) / DATASET
            self.stage = self._convert()
            self.options = replace(options, data=str(self.folder / f"{DATASET}.data"))

    def hand_over(self, state: State) -> None:
        """Let the state know of what was done before it was there."""
        if self.stage and DATASET not in state.stages:
            state.finish(DATASET, **self.stage)

    def _convert(self) -> dict[str, Any]:
        source = self.options.data
        figures_file = self.folder / f"{DATASET}.json"  # written last, so what it tells is there
        form, is_parted = recognise(Path(source), self.folder)
        words = ["convert_dataset.py", form, "--src", source, "--out", str(self.folder), "--json", str(figures_file)]
        words += [] if is_parted else ["--valid-share", f"{VALID_SHARE:g}"]
        check_writable(figures_file)
        make_folder(self.folder)
        handle = lock(self.folder.with_suffix(".lock"))
        start = time.perf_counter()
        try:
            if not figures_file.exists():
                print(f"$ python {typed(words)}", flush=True)
                status, line = launch(words, None, handle)
                if status:
                    raise UserError(line or f"this step failed with status {status}: python {typed(words)}")
        finally:
            os.close(handle)
        figures = json.loads(figures_file.read_text())
        if os.path.realpath(figures["src"]) != os.path.realpath(source):
            raise UserError(f"{self.folder}: was made of {figures['src']}; name another folder with --out")
        return {"words": words, "seconds": time.perf_counter() - start, "figures": figures}
