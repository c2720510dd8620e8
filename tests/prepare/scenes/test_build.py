import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from m3p.data.shards.manifest import Manifest, check_shards
from m3p.data.shards.sample_members import members
from m3p.errors import UserError
from m3p.prepare.scenes.build import LANGUAGES, SENTENCES, VOCABULARY, prepare_scenes
from m3p.prepare.scenes.scene import sample_scenes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scenes") / "scenes"
    prepare_scenes(output, train=620, held_out=20)
    return output


def captions(folder: Path) -> list[dict[str, list[str]]]:
    found = []
    for shard in Manifest.load(folder).shards:
        offsets = np.load(folder / shard.index_name)
        content = (folder / shard.name).read_bytes()
        for start, end in itertools.pairwise(offsets):
            found.append(json.loads(members(content[start:end])["json"])["captions"])
    return found


@pytest.mark.long
def test_writes_whole_sources(made: Path) -> None:
    codes = [language.code for language in LANGUAGES]
    for name, samples in (("train", 620), ("dev", 20)):
        manifest = Manifest.load(made / name)
        check_shards(made / name, manifest)
        assert manifest.captions == dict.fromkeys(sorted(codes), samples)
        assert (manifest.origin["split"], manifest.origin["caption_source"]) == (name, "written by the program")
    for code in codes:
        manifest = Manifest.load(made / "text" / code)
        assert (manifest.language, manifest.samples) == (code, SENTENCES)
    languages = json.loads((made / "dictionary" / "dictionary.json").read_text())["languages"]
    assert sorted(languages) == ["cs", "de", "fr", "ja", "zh"]


@pytest.mark.long
def test_held_out_scenes_are_unseen_from_either_side(made: Path) -> None:
    trained = {texts["en"][0] for texts in captions(made / "train")}
    held_out = [texts["en"][0] for texts in captions(made / "dev")]
    assert len(set(held_out)) == 20
    scenes = sample_scenes(0, 620, 20)[1]
    assert held_out == [LANGUAGES[0].caption(scene) for scene in scenes]
    assert not trained & {LANGUAGES[0].caption(said) for scene in scenes for said in (scene, scene.mirrored())}


@pytest.mark.long
def test_pictures_have_their_size(made: Path) -> None:
    offsets = np.load(made / "dev" / "shard-000000.idx")
    content = (made / "dev" / "shard-000000.tar").read_bytes()
    with Image.open(io.BytesIO(members(content[offsets[0] : offsets[1]])["png"])) as image:
        assert (image.size, image.mode) == ((48, 48), "RGB")


def test_words_meet_the_same_pieces_alone_and_in_captions(made: Path) -> None:
    """No piece spans two words, so what code-switching teaches about a word holds in a real caption."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(made / "tokenizer" / "sentencepiece.bpe.model"))
    assert model.get_piece_size() == VOCABULARY
    for texts in captions(made / "dev"):
        for code, [caption] in texts.items():
            pieces = model.encode(caption, out_type=str)
            assert model.unk_id() not in model.encode(caption)
            if code in ("ja", "zh"):
                assert pieces == ["▁", *caption]
            else:
                alone = [piece for word in caption.split() for piece in model.encode(word, out_type=str)]
                assert pieces == alone


@pytest.mark.long
def test_same_arguments_same_bytes(made: Path, tmp_path: Path) -> None:
    prepare_scenes(tmp_path / "again", train=620, held_out=20)
    files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    assert len(files) > 20
    for file in files:
        assert (made / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


@pytest.mark.long
def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--size 8"):
        prepare_scenes(tmp_path / "x", size=8)
    with pytest.raises(UserError, match="--train 99999"):
        prepare_scenes(tmp_path / "x", train=99999)
    assert not list(tmp_path.iterdir())
