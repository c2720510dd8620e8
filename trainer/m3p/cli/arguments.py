"""Arguments and options that several commands share."""

from typing import Annotated

import typer

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or a name that `m3p recipes` lists.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value ...", help="Recipe fields to change.")
]
DsConfigOption = Annotated[
    str,
    typer.Option("--deepspeed_config", "--deepspeed-config", help="A file of DeepSpeed's settings, or a name: zero1."),
]
Ranks = Annotated[int, typer.Option(min=0, max=1024, help="Processes; 0: one a GPU, or two on a CPU.")]
