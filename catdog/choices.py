"""Options with a few possible values: each set of values once, for the configurations and for the command line."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["onnx", "tensorflow"]
EngineChoice = Literal["auto", EngineName]
SplitChoice = Literal["test", "valid", "all"]
Duplicates = Literal["keep", "drop", "refuse"]
