"""Queries that the documents search the demo's pictures with have a picture to find."""

import re

from m3p.prepare.scenes.build import LANGUAGES
from m3p.prepare.scenes.scene import sample_scenes
from tests.launch import ROOT


def test_every_query_of_the_documents_describes_a_picture_that_is_searched() -> None:
    _, held_out = sample_scenes(0, 4000, 100)  # what `m3p prepare scenes` draws without options
    captions = [language.caption(scene) for scene in held_out for language in LANGUAGES]
    pages = "".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
    queries = re.findall(r'm3p search (?:runs/demo|found) "([^"]+)"', pages)
    assert len(queries) >= 3
    for query in queries:
        assert any(query in caption for caption in captions), query
