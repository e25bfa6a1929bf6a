"""Quantisation: a member's ONNX file with its convolutions in 8-bit integers, which CPUs compute faster.

The file keeps ONNX's own operators: each quantised tensor is followed by QuantizeLinear and DequantizeLinear (QDQ), and
ONNX Runtime computes what lies between two such pairs in integers. Activations are uint8 between the least and the
greatest value on calibration photos; weights are int8, with a scale for each output channel (`rounding`). All other
operators, the last layer among them, stay in float32.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catdog import stall
from catdog.errors import CatdogError, first_line
from catdog.inference.engines import OnnxEngine
from catdog.inference.rounding import Moments, Rounded, round_weights

if TYPE_CHECKING:
    import onnx

# Two products of a uint8 and such an integer fit into 16 bits, which is where CPUs without VNNI add them: with larger
# ones they saturate, and the model is another there.
MOST_PORTABLE = 64
# DequantizeLinear has a scale for each channel from this version of ONNX's operators on.
_FEWEST_OPSET = 13
_CHUNK = 8
# Positions in each row and column of a feature map at which its values are collected.
_POSITIONS = 4
# Of weights of one output channel: more than that would take gigabytes, and are rounded one by one.
_MOST_INPUTS = 2304
_UINT8_STEPS = 255


@dataclass
class _Observed:
    """What calibration photos show of one tensor: the least and the greatest value."""

    low: float = 0.0
    high: float = 0.0


@dataclass
class Observations:
    """What calibration photos show of a model.

    Attributes:
        ranges: the least and the greatest value of each tensor that may be quantised; 0 is always between them.
        moments: of the inputs of each convolution, by its name.
    """

    ranges: dict[str, _Observed] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)


class Quantiser:
    """One member's float32 model, and what calibration photos show of it, from which int8 models are made.

    Attributes:
        convolutions: names of the convolutions that can be quantised, in the order of the graph.
    """

    def __init__(self, data: bytes, photos: np.ndarray, threads: int = 1) -> None:
        """Folds batch-norm into the convolutions and observes the photos.

        Args:
            data: the float32 ONNX file.
            photos: uint8, N×S×S×3, N at least 1: training photos.
            threads: of ONNX Runtime.

        Raises:
            CatdogError: the model has no convolution that can be quantised.
        """
        self._model = fold(data)
        self._makers = {name: node for node in self._model.graph.node for name in node.output}
        self._arrays = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self.convolutions = [node.name for node in self._model.graph.node if self._can_quantise(node)]
        if not self.convolutions:
            raise CatdogError("the model has no convolution that can be quantised")
        self._observed = self._observe(photos, threads)
        self._rounded: dict[tuple[str, int], Rounded] = {}

    def quantise(self, most: int = MOST_PORTABLE, in_float: frozenset[str] = frozenset()) -> bytes:
        """Writes an int8 model.

        Args:
            most: the largest integer of a weight, at most 127.
            in_float: names of convolutions that stay in float32.

        Returns:
            An ONNX file that takes and gives what the float32 one does.
        """
        chosen = [name for name in self.convolutions if name not in in_float]
        for name in chosen:
            if (name, most) not in self._rounded:
                stall.beat()
                weights = self._array(self._node(name).input[1])
                self._rounded[name, most] = round_weights(weights, self._observed.moments[name], most)
        return self._write({name: self._rounded[name, most] for name in chosen})

    def by_sensitivity(self, photos: np.ndarray, most: int = MOST_PORTABLE, threads: int = 1) -> list[str]:
        """Sorts the convolutions by what quantising each of them alone does to the logits, the worst first.

        Args:
            photos: uint8, N×S×S×3: training photos, best others than those that were observed.
            most: as for `quantise`.
            threads: of ONNX Runtime.
        """
        expected = OnnxEngine(self._model.SerializeToString(), threads).logits(photos)
        error = {}
        for name in self.convolutions:
            stall.beat()
            others = frozenset(self.convolutions) - {name}
            found = OnnxEngine(self.quantise(most, others), threads).logits(photos)
            error[name] = float(np.square(found - expected).mean())
        return sorted(self.convolutions, key=lambda name: -error[name])

    def _can_quantise(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a convolution with constant weights, dense or depthwise, whose padding is explicit."""
        if node.op_type != "Conv" or not node.name or any(name not in self._arrays for name in node.input[1:]):
            return False
        options, shape = _attributes(node), self._arrays[node.input[1]].dims
        groups = options.get("group", 1)
        return (
            len(shape) == 4
            and options.get("auto_pad", b"NOTSET") == b"NOTSET"
            and set(options.get("dilations", [1])) == {1}
            and (groups == 1 or shape[1] == 1)
        )

    def _observe(self, photos: np.ndarray, threads: int) -> Observations:
        """Runs the photos through the model with every tensor that matters as an output."""
        import onnx

        nodes = [self._node(name) for name in self.convolutions]
        names = dict.fromkeys(node.input[0] for node in nodes)
        names |= dict.fromkeys(self._activation(node)[0] for node in nodes)
        names |= dict.fromkeys(node.output[0] for node in self._model.graph.node if node.op_type == "Add")
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.output[:]
        for name in names:
            value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            model.graph.output.append(value)
        session = OnnxEngine(model.SerializeToString(), threads)
        observed = Observations({name: _Observed() for name in names})
        sums: dict[str, tuple[np.ndarray, np.ndarray, int]] = {}
        for number, start in enumerate(range(0, len(photos), _CHUNK)):
            stall.beat()
            found = dict(zip(names, session.outputs(photos[start : start + _CHUNK]), strict=True))
            for name, values in found.items():
                each = observed.ranges[name]
                each.low, each.high = min(each.low, float(values.min())), max(each.high, float(values.max()))
            for node in nodes:
                taken = self._taken(node, found[node.input[0]], number)
                square = np.matmul(taken.transpose(0, 2, 1), taken) if _fits(taken) else (taken**2).sum(axis=1)
                before = sums.get(node.name, (0.0, 0.0, 0))
                total = taken.sum(axis=1, dtype=np.float64)
                sums[node.name] = (before[0] + total, before[1] + square.astype(np.float64), before[2] + taken.shape[1])
        for name, (total, square, count) in sums.items():
            mean = total / count
            if square.ndim == 3:
                covariance = square / count - mean[:, :, None] * mean[:, None, :]
            else:
                covariance = np.stack([np.diag(each) for each in square / count - mean**2])
            observed.moments[name] = Moments(mean, covariance)
        return observed

    def _taken(self, node: onnx.NodeProto, values: np.ndarray, phase: int) -> np.ndarray:
        """What a convolution's weights are multiplied with at some positions: float32, groups × positions × K."""
        options, (_, _, height, width) = _attributes(node), self._array(node.input[1]).shape
        top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
        padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        strides = options.get("strides", [1, 1])

        def positions(size: int, kernel: int, stride: int) -> np.ndarray:
            count = (size - kernel) // stride + 1
            step = max(1, count // _POSITIONS)
            return np.arange(phase % step, count, step)[:, None] * stride + np.arange(kernel)

        rows = positions(padded.shape[2], height, strides[0])
        columns = positions(padded.shape[3], width, strides[1])
        windows = padded[:, :, rows[:, None, :, None], columns[None, :, None, :]]
        channels = windows.shape[1]
        if options.get("group", 1) == 1:
            return windows.transpose(0, 2, 3, 1, 4, 5).reshape(1, -1, channels * height * width)
        return windows.transpose(1, 0, 2, 3, 4, 5).reshape(channels, -1, height * width)

    def _activation(self, node: onnx.NodeProto) -> tuple[str, onnx.NodeProto | None]:
        """The tensor that a convolution gives others, and the activation before it that its range stands for.

        Integers between the least and the greatest value that a ReLU or a clip gave cannot leave its range either.
        """
        takers = [other for other in self._model.graph.node if node.output[0] in other.input]
        if len(takers) == 1 and takers[0].op_type in ("Relu", "Clip") and takers[0].input[0] == node.output[0]:
            return takers[0].output[0], takers[0]
        return node.output[0], None

    def _write(self, rounded: dict[str, Rounded]) -> bytes:
        """Writes the model with these convolutions in integers, and sums of two quantised tensors too."""
        import onnx

        tensors: dict[str, None] = {}
        replaced, dropped = {}, set()
        for name in rounded:
            node = self._node(name)
            given, activation = self._activation(node)
            tensors |= dict.fromkeys([node.input[0], given])
            if activation is not None:
                replaced[node.output[0]] = given
                dropped.add(activation.output[0])
        for node in self._model.graph.node:
            if node.op_type == "Add" and all(name in tensors for name in node.input):
                tensors[node.output[0]] = None
        builder = _Builder(self._observed.ranges, list(tensors))
        for node in self._model.graph.node:
            if node.output[0] in dropped and node.op_type != "Conv":
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if node.name in rounded:
                bias = self._array(node.input[2]) if len(node.input) > 2 else np.zeros(len(rounded[node.name].scales))
                builder.add_convolution(copy, rounded[node.name], bias)
                copy.output[0] = replaced.get(node.output[0], node.output[0])
            elif node.op_type == "Conv":
                builder.keep_in_float(copy)
            builder.add(copy)
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.node[:], model.graph.value_info[:]
        model.graph.node.extend(builder.nodes)
        used = {name for node in builder.nodes for name in node.input}
        arrays = [tensor for tensor in (*model.graph.initializer, *builder.arrays) if tensor.name in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(arrays)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    def _node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self._model.graph.node if node.name == name)

    def _array(self, name: str) -> np.ndarray:
        import onnx

        return onnx.numpy_helper.to_array(self._arrays[name])


class _Builder:
    """Nodes and arrays of a quantised graph."""

    def __init__(self, ranges: dict[str, _Observed], tensors: list[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []
        self._scales = {}
        self._ranges = ranges
        for name in tensors:
            low, high = ranges[name].low, ranges[name].high
            scale = np.float32(max((high - low) / _UINT8_STEPS, 1e-8))
            self._scales[name] = scale
            self._store(f"{name}/scale", np.array(scale))
            self._store(f"{name}/zero", np.array(np.clip(np.round(-low / scale), 0, _UINT8_STEPS), np.uint8))

    def add(self, node: onnx.NodeProto) -> None:
        """Adds a node that takes quantised tensors as what they stand for, and quantises what it gives."""
        for at, name in enumerate(node.input):
            if name in self._scales:
                node.input[at] = f"{name}/float"
        self.nodes.append(node)
        for name in node.output:
            if name in self._scales:
                parts = [f"{name}/scale", f"{name}/zero"]
                self._add("QuantizeLinear", [name, *parts], f"{name}/integer")
                self._add("DequantizeLinear", [f"{name}/integer", *parts], f"{name}/float")

    def keep_in_float(self, node: onnx.NodeProto) -> None:
        """Makes a convolution, which is to be added next, take a quantised tensor through a clip that changes nothing.

        Between DequantizeLinear and QuantizeLinear, ONNX Runtime (WeightBiasQuantization) would round its weights to
        integers with one scale for all channels, which ruins depthwise ones.
        """
        name = node.input[0]
        if name not in self._scales:
            return
        clipped, spread = f"{node.name}/clipped", self._ranges[name].high - self._ranges[name].low
        for bound, value in (("low", self._ranges[name].low - spread), ("high", self._ranges[name].high + spread)):
            self._store(f"{clipped}/{bound}", np.array(value, np.float32))
        self._add("Clip", [f"{name}/float", f"{clipped}/low", f"{clipped}/high"], clipped)
        node.input[0] = clipped

    def add_convolution(self, node: onnx.NodeProto, rounded: Rounded, bias: np.ndarray) -> None:
        """Makes a convolution, which is to be added next, take integer weights and bias."""
        inputs = float(self._scales[node.input[0]])
        exact = bias.astype(np.float64) + rounded.shift
        # A channel with weights of next to nothing has a bias all the same, which must fit into 32 bits.
        scales = np.maximum(rounded.scales, (np.abs(exact) / inputs / 2**30).astype(np.float32))
        same = scales == rounded.scales
        integers = np.where(same[:, None, None, None], rounded.integers, 0).astype(np.int8)
        products = (inputs * scales.astype(np.float64)).astype(np.float32)
        integer_bias = np.round(exact / products.astype(np.float64)).astype(np.int32)
        del node.input[1:]
        for part, values, each in (("weights", integers, scales), ("bias", integer_bias, products)):
            name = f"{node.name}/{part}"
            self._store(name, values)
            self._store(f"{name}/scale", each)
            self._store(f"{name}/zero", np.zeros(len(each), values.dtype))
            self._add("DequantizeLinear", [name, f"{name}/scale", f"{name}/zero"], f"{name}/float", axis=0)
            node.input.append(f"{name}/float")

    def _add(self, kind: str, inputs: list[str], output: str, **options: Any) -> None:
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **options))

    def _store(self, name: str, values: np.ndarray) -> None:
        import onnx

        self.arrays.append(onnx.numpy_helper.from_array(values, name))


def fold(data: bytes) -> onnx.ModelProto:
    """Folds batch-norm into the convolutions of an ONNX file, by ONNX Runtime's basic optimisations.

    Args:
        data: the float32 ONNX file.

    Raises:
        CatdogError: ONNX Runtime cannot load it, or its operators are too old.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has many
            raise CatdogError(f"ONNX Runtime cannot load the model: {first_line(error)[:300]}") from error
        model = onnx.load_from_string(path.read_bytes())
    own = [each for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if own[0].version < _FEWEST_OPSET:
        raise CatdogError(f"the model has operators of version {own[0].version}, expected {_FEWEST_OPSET} or later")
    del model.opset_import[:]  # ONNX Runtime lists all that it knows
    model.opset_import.extend(own)
    return model


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _fits(taken: np.ndarray) -> bool:
    return taken.shape[-1] <= _MOST_INPUTS
