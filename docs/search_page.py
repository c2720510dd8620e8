"""Takes the picture of the search page in docs/retrieval.md: serves an index and lets a headless Chromium load a query.

python docs/search_page.py INDEX QUERY [--output docs/search.png]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from m3p.search.index import SearchIndex
from m3p.search.serve.server import Server

COLOURS = 128
"""Colours of the picture's palette, which keeps the file small."""


def main() -> None:
    """Serve, load, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("query")
    parser.add_argument("--output", type=Path, default=Path("docs/search.png"))
    asked = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    index = SearchIndex(asked.index)
    server = Server(("127.0.0.1", 0), index, index.open_model(), per_second=1000)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        take(program, f"{server.url}?q={quote(asked.query)}", asked.output)
    finally:
        server.shutdown()
        server.server_close()


def take(program: str, url: str, output: Path) -> None:
    """Write what the browser shows of `url`, with few colours, to `output`."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        words = [program, "--headless=new", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,720"]
        words += ["--virtual-time-budget=8000", f"--user-data-dir={folder}/profile", f"--screenshot={shot}", url]
        if os.geteuid() == 0:
            words.insert(1, "--no-sandbox")  # which Chromium refuses to start for root
        subprocess.run(words, check=True, timeout=120, stderr=subprocess.DEVNULL)
        with Image.open(shot) as picture:
            picture.convert("RGB").quantize(COLOURS).save(output, optimize=True)


if __name__ == "__main__":
    main()
