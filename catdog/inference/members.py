"""The files of members, which anybody may have made: Keras's layers built anew, ONNX files checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from catdog.errors import CatdogError, first_line
from catdog.models import registry, weight_files
from catdog.models.spec import ModelSpec

if TYPE_CHECKING:
    import keras
    import onnx

# The operators of the standard; those of other domains are an installation's own.
_DOMAINS = ("", "ai.onnx")


class _Layers(pydantic.BaseModel):
    """The options of a training run that decide the shapes of weights."""

    arch: str | None = None
    alpha: Annotated[float, pydantic.Field(gt=0)] = 1.0
    conv_layers: Annotated[int, pydantic.Field(ge=1, le=6)] = 3
    units: Annotated[int, pydantic.Field(ge=1)] = 64
    dense_layers: Annotated[int, pydantic.Field(ge=0, le=6)] = 0


def spec_of(architecture: str, image_size: int, training: dict[str, Any]) -> ModelSpec:
    """What decides the layers of a saved model, as far as it matters to one that is not trained any more.

    Args:
        architecture: name in the registry, where `training` has none.
        image_size: S, in pixels.
        training: what `BundleInfo` says of how it was trained.

    Raises:
        CatdogError: an option is none that training takes.
    """
    try:
        layers = _Layers.model_validate(training.get("options", {}))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise CatdogError(f"training.options: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return ModelSpec(layers.arch or architecture, image_size, **layers.model_dump(exclude={"arch"}))


def rebuild_model(spec: ModelSpec, data: bytes) -> keras.Model:
    """Builds a model from the registry, and loads the weights of a `.keras` file of which nothing else is read.

    Args:
        spec: from `spec_of`.
        data: the bytes of the file.

    Returns:
        As `registry.build_model`; its logits are those of the model that was saved, to the bit.

    Raises:
        CatdogError: the registry has no such architecture, or the file's arrays are not its.
    """
    try:
        return weight_files.load_saved_model(lambda: registry.build_model(spec), data)
    except (ValueError, OSError, MemoryError) as error:
        raise CatdogError(
            f"it is not the {spec.arch} for {spec.image_size} pixels that bundle.json describes: {first_line(error)}"
        ) from error


def require_plain_onnx(data: bytes, image_size: int) -> None:
    """Makes sure that a file is one graph of standard operators from images to a logit, all its numbers in itself.

    Args:
        data: the bytes of the file.
        image_size: S, in pixels.

    Raises:
        ValueError: it is something else; says what.
    """
    import onnx

    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's, which onnx does not name
        raise ValueError("is no ONNX file, or damaged") from error
    graph, kinds = model.graph, onnx.TensorProto
    if model.functions or model.training_info or graph.sparse_initializer:
        raise ValueError("has functions, training or sparse arrays, expected a plain graph")
    for tensor in (*graph.initializer, *_constants(graph)):
        if tensor.data_location == kinds.EXTERNAL or tensor.external_data:
            raise ValueError(f"takes {tensor.name or 'a constant'} from another file, expected all numbers in this one")
    stored = {tensor.name for tensor in graph.initializer}
    given = [_signature(value) for value in graph.input if value.name not in stored]
    taken = [_signature(value) for value in graph.output]
    for which, found, kind, shape in (
        ("takes", given, kinds.UINT8, (image_size, image_size, 3)),
        ("gives", taken, kinds.FLOAT, (1,)),
    ):
        if found != [(kind, shape)]:
            names = [f"{kinds.DataType.Name(each)} N×{'×'.join(map(str, rest))}" for each, rest in found]
            expected = f"{kinds.DataType.Name(kind)} N×{'×'.join(map(str, shape))}"
            raise ValueError(f"{which} {', '.join(names) or 'nothing'}, expected {expected}")


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The arrays in a graph's nodes, each of which must be a standard operator without a graph of its own."""
    for node in graph.node:
        if node.domain not in _DOMAINS:
            raise ValueError(f"has the operator {node.domain}.{node.op_type}, expected those of ONNX itself")
        for attribute in node.attribute:
            if attribute.graphs or attribute.HasField("g"):
                raise ValueError(f"has the operator {node.op_type}, a branch or loop, expected a plain graph")
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.sparse_tensors or attribute.HasField("sparse_tensor"):
                raise ValueError(f"has sparse arrays in {node.op_type}, expected a plain graph")


def _signature(value: onnx.ValueInfoProto) -> tuple[int, tuple[int, ...]]:
    """Type and shape of an input or output, without the batch's size; 0 where a length is left open."""
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(each.dim_value for each in tensor.shape.dim)[1:]
