"""Settings of the test run, made before JAX is imported: the CPU, and passes that raise where they fail."""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["LEPTON_STRICT"] = "1"
