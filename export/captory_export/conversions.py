"""Graphs of fp32 in other precisions, in place; their inputs and outputs stay fp32."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

BLOCK = 32  # weights that share a scale


def to_int8(path: Path) -> None:
    """The constant matrices of multiplications in int8 (`MatMulNBits`), a scale for every 32 weights."""
    import onnx
    import onnx_ir as ir
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    from captory_export.constant_matmuls import as_matmuls

    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=8)
    model = ir.load(path)
    ir.external_data.load_to_model(model)  # what lies beside it is written anew
    as_matmuls(model)
    quantiser = MatMulNBitsQuantizer(ir.to_proto(model), algo_config=config)
    quantiser.process()
    quantised: Any = quantiser.model  # a wrapper of the model
    data = path.with_name(f"{path.name}.data")
    beside = data.is_file()
    data.unlink(missing_ok=True)
    onnx.save(quantised.model, path, save_as_external_data=beside, location=data.name if beside else None)


def to_fp16(path: Path) -> None:
    """fp16, except where `half.narrow` keeps fp32."""
    _narrowed(path, "FLOAT16")


def to_bf16(path: Path) -> None:
    """bf16, which has the range of fp32 where fp16 would overflow, except where `half.narrow` keeps fp32."""
    _narrowed(path, "BFLOAT16")


def _narrowed(path: Path, kind: str) -> None:
    import onnx_ir as ir

    from captory_export.half import narrow

    model = ir.load(path)
    ir.external_data.load_to_model(model)  # what lies beside it is written anew
    narrow(model, ir.DataType[kind])
    data = path.with_name(f"{path.name}.data")
    beside = data.is_file()
    data.unlink(missing_ok=True)
    ir.save(model, path, external_data=data.name if beside else None)
