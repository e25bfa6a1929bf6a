"""ONNX files that anybody may have made: what they must be before ONNX Runtime is given one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# The operators of the standard; those of other domains are an installation's own.
_DOMAINS = ("", "ai.onnx")


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
