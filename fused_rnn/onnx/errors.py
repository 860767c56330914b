"""What is raised where a call has no translation."""


class ExportError(RuntimeError):
    """A call of a module that ONNX, or onnxruntime, has no means for."""
