"""Prompt to picture without torch: numpy, onnxruntime and tokenizers read what `python -m iris.export` wrote.

    python -m iris.runtime FOLDER "red apple" -o apple.png
"""

from iris.runtime.generate import OnnxPipeline, RuntimeFailure

__all__ = ["OnnxPipeline", "RuntimeFailure"]
