"""Tables in which text from outside is only text: no markup of rich, no terminal escapes, no passwords."""

from typing import Any

from rich.console import Console
from rich.text import Text

from m3p.masking import masked
from m3p.terminal import printable


class PlainConsole(Console):
    """A console for tables in which a str is text: no markup, no emoji names, no escapes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return a cell or title as rich text."""
        return super().render_str(printable(masked(text)), **settings)
