"""Tasks: what is asked of the network, and the loss.

A loss is a sum over terms and its `count` the number of terms; the engine adds both over micro-batches and ranks and
divides once (so it is never a mean of means). To add a task: its file here, its line in `TASKS`, its head in `model/heads.py`.
"""

from m3p.objectives.tasks.contrastive import Contrastive
from m3p.objectives.tasks.masked_regions import MaskedRegions
from m3p.objectives.tasks.masked_words import MaskedWords
from m3p.objectives.tasks.matching import Matching
from m3p.objectives.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (MaskedWords(), MaskedRegions(), Matching(), Contrastive())}
