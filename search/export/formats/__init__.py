"""A module for each format: writes its file, opens it with its stock library, describes it to users.
The modules import nothing else of ``search``.

format   the interface of a format
table    the list of formats; `studies.final` has their names
weights  config.json and model.safetensors in timm's layout, which every export has
onnx     model.onnx, through ONNX Runtime
pt2      model.pt2, through torch.export
"""
