"""Running a network on arrays: torch, onnxruntime and OpenVINO behind one face."""
