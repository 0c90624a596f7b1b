"""Write a GGUF file anew with its matrices in another type, by the quantizers of the package gguf.

They give the bits of ggml's own reference quantizers. They know the types of plain blocks and not the K
types, whose files come from ``llama-quantize``.
"""

from __future__ import annotations

from pathlib import Path

from qdx.errors import QdxError
from qdx.schema_gguf import FILE_TYPES

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def requantize(source: Path, target: Path, form: str) -> None:
    """Write `source` to `target` with every matrix in the type `form`; vectors stay as they are.

    Parameters
    ----------
    source : Path
        A GGUF file.
    target : Path
        Must not exist yet.
    form : str, one of `TYPES`

    Raises
    ------
    QdxError
        For a type that has no quantizer here.
    """
    if form not in TYPES:
        raise QdxError(
            f"no quantizer for type {form} here, one of {', '.join(TYPES)}: make it with llama-quantize"
        )
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize, quantize

    kind = GGMLQuantizationType[form.upper()]
    reader = GGUFReader(str(source))
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = FILE_TYPES[form] if name == "general.file_type" else field.contents()
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], inner)
    for tensor in reader.tensors:
        matrix = len(tensor.shape) > 1 and not tensor.name.endswith("_norm.weight")
        data = (
            quantize(dequantize(tensor.data, tensor.tensor_type), kind) if matrix else np.array(tensor.data)
        )
        writer.add_tensor(tensor.name, data, raw_dtype=kind if matrix else tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
