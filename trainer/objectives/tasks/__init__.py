"""Tasks: what is asked of the network, and the loss.

A loss is a sum over terms and its `count` the number of terms; the engine adds both over micro-batches and ranks and
divides once (so it is never a mean of means). To add a task: its file here, its line in `TASKS`, its head in `model/heads.py`.
"""

from trainer.objectives.tasks.contrastive import Contrastive
from trainer.objectives.tasks.masked_regions import MaskedRegions
from trainer.objectives.tasks.masked_words import MaskedWords
from trainer.objectives.tasks.matching import Matching
from trainer.objectives.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (MaskedWords(), MaskedRegions(), Matching(), Contrastive())}
