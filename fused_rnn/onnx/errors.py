"""What is raised where a call has no translation."""


class CannotExport(RuntimeError):
    """A call of a module that ONNX, or onnxruntime, has no means for."""
