"""Lists the packages by looking at the tree, so that none can be forgotten; all else is in pyproject.toml."""

from setuptools import find_packages, setup

PASSES = "lepton_jax.passes"

setup(
    packages=[
        *find_packages(include=["lepton_jax", "lepton_jax.*"]),
        PASSES,
        *(f"{PASSES}.{package}" for package in find_packages("passes")),
    ]
)
