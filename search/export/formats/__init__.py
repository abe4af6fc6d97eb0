"""A file per format of an export: how it is written, opened by its stock library, and told to users. It knows no room.

format   what a format is
table    which formats there are
weights  config.json and model.safetensors in timm's layout, which every export has
onnx     model.onnx, through ONNX Runtime
pt2      model.pt2, through torch.export
"""
