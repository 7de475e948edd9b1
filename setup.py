"""Build the package `bnn_geometry`: layers, geometry, measurements and packed networks.

In the repository modules import each other by plain names, such as `utils`. In somebody else's
project these names would collide with modules of theirs. The package holds the same files, with
these imports rewritten to `bnn_geometry.utils` while it is built.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGE = "bnn_geometry"
# What runs only in the repository is left out: command lines, reports, data sets.
MODULES = (
    "adversarial",
    "batch_norm",
    "bnn",
    "checkpoint",
    "experiments",
    "files",
    "flips",
    "geometry_log",
    "graph_ops",
    "measure",
    "networks",
    "optimizers",
    "plotting",
    "products",
    "quantizers",
    "straight_through",
    "stream",
    "training",
    "utils",
    "walk",
)
FOLDERS = ("distribute", "export", "fast", "geometry", "packed")


def rewritten(source):
    """Source code that imports this project's modules from the package."""
    own = rf"({'|'.join(MODULES + FOLDERS)})\b"
    source = re.sub(rf"^( *)from {own}", rf"\1from {PACKAGE}.\2", source, flags=re.MULTILINE)
    return re.sub(rf"^( *)import {own}", rf"\1from {PACKAGE} import \2", source, flags=re.MULTILINE)


class BuildPackage(build_py):
    """Copy the chosen modules, with their imports rewritten."""

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [part for part in found if package != PACKAGE or part[1] in MODULES]

    def build_module(self, module, module_file, package):
        target, copied = super().build_module(module, module_file, package)
        path = Path(target)
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
        return target, copied


if __name__ == "__main__":
    setup(
        packages=[PACKAGE, *(f"{PACKAGE}.{folder}" for folder in FOLDERS)],
        package_dir={PACKAGE: "."},
        package_data={f"{PACKAGE}.export": ["templates/*.jinja"]},
        cmdclass={"build_py": BuildPackage},
    )
