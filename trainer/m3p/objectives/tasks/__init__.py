"""Tasks: what is asked of the network, and the loss. `TASKS` holds all of them, by name.

A loss is a sum over terms and its `count` the number of terms; the engine adds both over micro-batches and ranks and divides
once, so it is never a mean of means.

To add a task, write its file, with a subclass of `Task` that holds all that the program knows of it (its head too), and its
line in `TASKS`. Objectives on pairs then offer it in their field `tasks`.

Arrows: tasks import the model's sizes and the base of its heads; the model imports no task. It is given tasks, and asks
them for their heads (`HeadOwner` in model/heads.py). Nothing outside a task's own file compares its name: what others want
to know of it is an attribute of `Task`.
"""

from collections.abc import Iterable

from m3p.objectives.tasks.contrastive import Contrastive
from m3p.objectives.tasks.cosine import Cosine
from m3p.objectives.tasks.masked_regions import MaskedRegions
from m3p.objectives.tasks.masked_words import MaskedWords
from m3p.objectives.tasks.matching import Matching
from m3p.objectives.tasks.task import Task

__all__ = ["TASKS", "Task", "choose_tasks"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        MaskedWords(),
        MaskedRegions(),
        Matching(),
        Contrastive(),
        Cosine(),
    )
}
"""In the order of their heads in the network, which is the same on every rank."""


def choose_tasks(names: Iterable[str]) -> list[Task]:
    """Return the tasks of these names in the order of `TASKS`. Raises KeyError for a name that is none."""
    wanted = {TASKS[name].name for name in names}
    return [task for name, task in TASKS.items() if name in wanted]
