"""Options with a few possible values: each set of values once, for the configurations and for the command line."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

EngineName = Literal["onnx", "tensorflow"]
EngineChoice = Literal["auto", EngineName]
# auto is that of the bundle that is named.
PrecisionChoice = Literal["auto", "float32", "int8"]
SplitChoice = Literal["test", "valid", "all"]
# The epoch of a training run that is kept.
Keep = Literal["best", "last"]
# Where training's images are kept.
StoreName = Literal["decoded", "encoded", "files"]
# The order of training's images.
Shuffle = Literal["full", "blocks"]
Duplicates = Literal["keep", "drop", "refuse"]
# The name of a view as `catdog.inference.views.apply_view` takes it.
View = Annotated[str, pydantic.Field(pattern=r"^(identity|mirror|crop-[5-9][0-9](-mirror)?)$")]
ArchiveName = Literal["kaggle", "microsoft", "fastai"]
# URIs of runs or of bundles; one alone may be given as it is.
ModelUris = Annotated[
    list[str], pydantic.BeforeValidator(lambda m: [m] if isinstance(m, str) else m), pydantic.Field(min_length=1)
]
