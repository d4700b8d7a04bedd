"""The offline demo: a small network trained on the UCI handwritten digits, its data, its configuration.

Credit: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
CC BY 4.0, https://doi.org/10.24432/C50P49, in scikit-learn's copy. `train.py` made the files.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from edgebuild.pipeline.errors import ConfigError

DEMO_FILES: Final = ("edgebuild.yaml", "digits.h5", "calibration.npz", "evaluation.npz", "training.npz")


def lay_out(folder: Path) -> None:
    """Copy the demo's files into a folder; files that are there, edited or not, stay as they are.

    Raises:
        ConfigError: the folder can't be written.
    """
    if (folder / "edgebuild.yaml").exists() and not (folder / "digits.h5").exists():
        raise ConfigError(
            f"{folder} holds an edgebuild.yaml of another project", action="name an empty folder, or one of the demo"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in DEMO_FILES:
            if not (folder / name).exists():
                shutil.copyfile(Path(__file__).with_name(name), folder / name)
    except OSError as e:
        raise ConfigError(f"{folder} can't be written", cause=str(e), action="name another folder") from e
