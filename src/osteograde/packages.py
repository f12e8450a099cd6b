"""Whether the packages that the kit cannot do without are installed. Nothing is imported, so it takes no time."""

from __future__ import annotations

import importlib.util

from osteograde.errors import UserError

NEEDED = {  # module that is imported: package that holds it, as pyproject.toml names it
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "pydicom": "pydicom",
    "cv2": "opencv-python-headless",
    "pandas": "pandas",
    "numpy": "numpy",
    "scipy": "scipy",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "tqdm": "tqdm",
}
TO_TRAIN = {"sklearn": "scikit-learn"}


def check_tune() -> None:
    """UserError where the package that ``osteograde tune`` needs is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError('the package optuna is not installed; pip install "osteograde[tune]", or pip install optuna')


def check(*, to_train: bool) -> None:
    """UserError that names every package that is not installed. to_train: those that only training needs count too."""
    needed = NEEDED | (TO_TRAIN if to_train else {})
    if missing := [package for module, package in needed.items() if importlib.util.find_spec(module) is None]:
        raise UserError(
            f"not installed here: {', '.join(missing)}; `make` installs everything into .venv (then run "
            ".venv/bin/python), or pip install -r requirements.lock"
        )
