"""Names of the files of an exported model, which the exporter writes and the runtime reads."""

FORMAT = 1
MODEL_FILE = "model.json"
TOKENIZER_FILE = "tokenizer.json"
GRAPHS = {name: f"{name}.onnx" for name in ("text_encoder", "condition", "prelude", "core", "coda", "decoder")}
SAMPLERS = ("euler", "consistency")  # those that the runtime knows
