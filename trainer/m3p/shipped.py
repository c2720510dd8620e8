"""What comes with the program beside its code: recipes, DeepSpeed's settings and Slurm's batch scripts.

In the checkout ds_configs/ and slurm/ are folders at the top, and links lead to them from the package; a wheel holds copies.
"""

import difflib
from pathlib import Path

from m3p.errors import UserError

PACKAGE = Path(__file__).parent
RECIPES, DS_CONFIGS, SLURM = PACKAGE / "recipes", PACKAGE / "ds_configs", PACKAGE / "slurm"


def find_recipe(name: str | Path) -> Path:
    """Return the recipe file `name`, or the shipped recipe of that name, such as "demo". Raises UserError."""
    return _find(str(name), RECIPES, ".yaml", "recipe", "`m3p recipes` lists them")


def find_ds_config(name: str | Path) -> Path:
    """Return the file of DeepSpeed's settings `name`, or the shipped one of that name, such as "zero1". Raises UserError."""
    return _find(str(name), DS_CONFIGS, ".json", "DeepSpeed config", "or write a file of your own")


def recipes() -> dict[str, str]:
    """Return the names of the shipped recipes and the first line of each: what it trains, and on what."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        for path in sorted(RECIPES.glob("*.yaml"))
    }


def _find(name: str, folder: Path, suffix: str, what: str, hint: str) -> Path:
    """Return the file `name` or, where `name` is no path, `folder`/NAME+`suffix`. Raises UserError that lists what there is."""
    if Path(name).is_file():
        return Path(name)
    known = sorted(path.stem for path in folder.glob(f"*{suffix}"))
    if name in known:
        return folder / f"{name}{suffix}"
    near = difflib.get_close_matches(Path(name).stem, known, 1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"{what} {name!r}: there is no such file, and none of that name comes with the program; {guess}There are: "
        f"{', '.join(known)}; {hint}"
    )
