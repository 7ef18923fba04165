"""Export trained models for other engines: ONNX and OpenVINO."""
