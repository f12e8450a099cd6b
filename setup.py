"""What pyproject.toml cannot say: a wheel carries the scripts of the kernels, and names and hashes of the weights."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildPackage(build_py):
    """Adds to the built package what lies beside it in a checkout. An editable install finds it there."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(ROOT / "src"))
        from osteograde.models import shipped  # needs nothing that a build lacks

        package = Path(self.build_lib) / "osteograde"
        shutil.copytree(ROOT / "kernels", package / "kaggle" / "kernels", dirs_exist_ok=True)
        index = shipped.index_text(shipped.index_of(ROOT / "weights"))
        (package / shipped.INDEX).write_text(index, encoding="utf-8")


setup(cmdclass={"build_py": BuildPackage})
