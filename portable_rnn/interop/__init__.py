"""Models from other frameworks and back. No framework is imported before a function here is called.

torch and Keras go both ways, Flax and Equinox come in, ONNX has its own room. `portable_rnn.from_torch` and the other
public names lead here.
"""
