"""How to train one image classifier: pictures, models, the loop. Knows nothing of searches.

    for result in fit(TrainConfig(...), prepare_data(DataConfig(...), Path("cache")), open_device("cpu")):
        print(result)

Nothing of ours is imported here: `trainer.config` must load without torch.
"""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what is logged goes where the caller says
