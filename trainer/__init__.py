"""Trains one image classifier: pictures, models, the loop. Knows nothing about searches.

    for result in fit(TrainConfig(...), prepare_data(DataConfig(...), Path("cache")), open_device("cpu")):
        print(result)

This file imports no module of the package, because `trainer.config` must load without torch.
"""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # the caller chooses the log
