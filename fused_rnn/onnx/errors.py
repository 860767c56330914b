"""The error for calls without a translation."""


class ExportError(RuntimeError):
    """A call of a module that cannot be expressed in ONNX, or run by onnxruntime."""
