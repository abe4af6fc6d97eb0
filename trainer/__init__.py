"""How to train one image classifier: pictures, models, the loop. Knows nothing of searches.

    for result in fit(TrainConfig(...), prepare_data(DataConfig(...), Path("cache")), open_device("cpu")):
        print(result)

Nothing is imported here: `trainer.config` must load without torch.
"""
