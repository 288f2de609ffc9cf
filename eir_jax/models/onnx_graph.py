"""The encoder as an ONNX graph, built from its arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eir_jax.system.errors import UserError

OPSET = 17  # ONNX 1.12: read by every runtime since 2022


def onnx_model(
    tensors: Mapping[str, np.ndarray],
    *,
    side: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    about: Mapping[str, str],
) -> bytes:
    """Return a serialised model: images -> (embedding, feature), any number of rows.

    Args:
      tensors: by torchvision's names (models/weights.py).
      side: of the images that go in, uint8 [n, side, side, 3], pixels.
      image_size: of their centre, which the encoder sees; at most `side`.
      mean: of a channel in [0, 1], taken off.
      std: of a channel, divided by.
      about: text for the model's metadata.

    Raises:
      UserError: the package onnx is not installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise UserError("an .onnx needs the package onnx: pip install onnx") from None

    nodes: list[Any] = []
    constants: dict[str, np.ndarray] = {}

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = value
        return name

    def add(kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def conv(x: str, name: str, stride: int) -> str:
        kernel = tensors[f"{name}.weight"]
        size = kernel.shape[-1]
        weight = constant(f"{name}.weight", kernel)
        return add("Conv", x, weight, pads=[size // 2] * 4, strides=[stride] * 2)

    def norm(x: str, name: str) -> str:
        arrays = [
            constant(f"{name}.{array}", tensors[f"{name}.{array}"])
            for array in ("weight", "bias", "running_mean", "running_var")
        ]
        return add("BatchNormalization", x, *arrays, epsilon=1e-5)

    def floats(name: str, values: Any) -> str:
        return constant(name, np.array(values, np.float32))

    x = "images"
    if image_size < side:
        first = (side - image_size) // 2
        bounds = {"starts": [first] * 2, "ends": [first + image_size] * 2}
        bounds["axes"] = [1, 2]
        names = [constant(k, np.array(v, np.int64)) for k, v in bounds.items()]
        x = add("Slice", x, *names)
    x = add("Div", add("Cast", x, to=TensorProto.FLOAT), floats("255", 255))
    x = add("Div", add("Sub", x, floats("mean", mean)), floats("std", std))
    x = add("Transpose", x, perm=[0, 3, 1, 2])

    imagenet = tensors["conv1.weight"].shape[-1] == 7
    x = add("Relu", norm(conv(x, "conv1", 2 if imagenet else 1), "bn1"))
    if imagenet:
        x = add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    stage, block = 1, 0
    while f"layer{stage}.0.conv1.weight" in tensors:
        name = f"layer{stage}.{block}"
        stride = 2 if stage > 1 and block == 0 else 1
        y = add("Relu", norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
        y = norm(conv(y, f"{name}.conv2", 1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in tensors:
            x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        x = add("Relu", add("Add", x, y))
        block += 1
        if f"layer{stage}.{block}.conv1.weight" not in tensors:
            stage, block = stage + 1, 0
    feature = add("Flatten", add("GlobalAveragePool", x), output="feature")
    weight, bias = (constant(f"fc.{x}", tensors[f"fc.{x}"]) for x in ("weight", "bias"))
    x = add("Gemm", feature, weight, bias, transB=1)
    length = add("ReduceL2", x, axes=[1], keepdims=1)
    add("Div", x, add("Max", length, floats("epsilon", 1e-12)), output="embedding")

    dim, features = tensors["fc.weight"].shape
    outputs = {"embedding": dim, "feature": features}
    graph = helper.make_graph(
        nodes,
        "eir_jax",
        [
            helper.make_tensor_value_info(
                "images", TensorProto.UINT8, ["n", side, side, 3]
            )
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
            for name, size in outputs.items()
        ],
        [
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(
        graph,
        producer_name="eir_jax",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
    )
    helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised
