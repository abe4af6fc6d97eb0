"""A module per format: how its file is written, opened by its stock library, described to users. It knows no room.

format   the interface of a format
table    the list of formats
weights  config.json and model.safetensors in timm's layout, which every export has
onnx     model.onnx, through ONNX Runtime
pt2      model.pt2, through torch.export
"""
