"""The commands `m3p prepare ...` and `m3p index`."""

from pathlib import Path
from typing import Annotated

import typer

from m3p.data.kinds import KINDS
from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import Manifest
from m3p.prepare.captions import prepare_captions
from m3p.prepare.dictionary import prepare_dictionary
from m3p.prepare.pairs import Options, caption_counts, report
from m3p.prepare.pictures import PictureFolder
from m3p.prepare.scenes.build import prepare_scenes
from m3p.prepare.text import prepare_text
from m3p.prepare.tokenizer import Algorithm, prepare_tokenizer
from m3p.prepare.trim import trim_vocabulary
from m3p.terminal import say
from m3p.vocabulary import SENTENCEPIECE_FILE

prepare_app = typer.Typer(no_args_is_help=True, help="Raw captions, text and word lists to what training reads.")

Output = Annotated[Path, typer.Option(help="Folder to write; new or empty.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what this command wrote there before.")]
SamplesPerShard = Annotated[int, typer.Option(min=1, help="Samples in one tar.")]


Regions = Annotated[Path | None, typer.Option(help="Folder of ID.npz with stored region features.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave wrong records out instead of stopping.")]
LeaveOut = Annotated[
    list[Path] | None,
    typer.Option("--leave-out", help="Shards whose pictures are left out, such as a test's; may be given again."),
]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Read pictures through links out of their folder.")]


@prepare_app.command("captions")
def captions_command(
    source: Annotated[Path, typer.Argument(metavar="INPUT.jsonl", help="One record a line; .gz and .xz are read too.")],
    output: Output,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; the folder of the file if left out.")
    ] = None,
    follow_links: FollowLinks = False,
    language: Annotated[str | None, typer.Option(help="Language of captions that name none.")] = None,
    caption_source: Annotated[
        str | None,
        typer.Option(help="Who wrote the captions: human, human translation, machine translation, web, ..."),
    ] = None,
    regions: Regions = None,
    leave_out: LeaveOut = None,
    skip_bad: SkipBad = False,
    samples_per_shard: SamplesPerShard = 1000,
    overwrite: Overwrite = False,
) -> None:
    """Captioned pictures to shards.

    A record is {"id": ..., "image": PATH, "captions": {"en": TEXT or [TEXTS], ...}}, with "concept" (pictures of one
    concept share their captions) and "category" if there are any. Image paths are relative to the folder of the pictures,
    and stay inside it. Every record is checked; all mistakes are reported at once and nothing is written.
    """
    pictures = PictureFolder(images or source.parent, follow_links)
    origin = {} if caption_source is None else {"caption_source": caption_source}
    unwanted = tuple(leave_out or ())
    options = Options(pictures, language, regions, skip_bad, samples_per_shard, overwrite, origin, unwanted)
    say_pairs(str(source), output, prepare_captions(source, output, options))


def say_pairs(source: str, output: Path, made: tuple[Manifest, dict[str, list[str]]]) -> None:
    """Say what was written, and what was skipped."""
    manifest, bad = made
    if bad:
        say(f"skipped: {report(source, bad)}")
    say(f"{output}: {describe(manifest)}")


@prepare_app.command("text")
def text_command(
    folder: Annotated[Path, typer.Argument(help="Holds LANG.txt files, one paragraph a line.")],
    output: Output,
    max_characters: Annotated[int, typer.Option(min=20, help="Longer paragraphs are cut at sentence ends.")] = 1000,
    samples_per_shard: SamplesPerShard = 10_000,
    overwrite: Overwrite = False,
) -> None:
    """Plain text to one source of passages a language: OUTPUT/LANG/."""
    manifests = prepare_text(folder, output, max_characters, samples_per_shard, overwrite)
    passages = sum(manifest.samples for manifest in manifests.values())
    say(f"{output}: {passages:,} passages in {len(manifests)} languages")


@prepare_app.command("dictionary")
def dictionary_command(
    folder: Annotated[Path, typer.Argument(help="Holds en-LANG.tsv or en-LANG.txt files in MUSE's layout.")],
    output: Output,
    keep_function_words: Annotated[
        bool, typer.Option("--keep-function-words", help="Keep articles, pronouns, prepositions and the like.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Clean bilingual word lists for code-switching; dictionary.json says what was dropped."""
    for language, words in prepare_dictionary(folder, output, keep_function_words, overwrite).items():
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in words.dropped.most_common())
        say(
            f"{language}: {len(words.translations):,} words, {words.pairs:,} pairs; dropped: {dropped or 'none'}"
            + (f"; columns after the second were left out of {words.columns:,} lines" if words.columns else "")
        )


@prepare_app.command("tokenizer")
def tokenizer_command(
    files: Annotated[list[Path], typer.Argument(metavar="TEXT_FILES...", help="One paragraph a line.")],
    output: Output,
    vocabulary: Annotated[int, typer.Option(min=32, help="Number of pieces.")],
    algorithm: Annotated[Algorithm, typer.Option(help="How sentencepiece chooses pieces.")] = "unigram",
    split_cjk: Annotated[
        bool, typer.Option("--split-cjk", help="Make every Chinese and Japanese character a piece of its own.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a sentencepiece vocabulary with XLM-R's ids, for a model trained from scratch."""
    pieces = prepare_tokenizer(files, output, vocabulary, algorithm, split_cjk, overwrite)
    say(f"{output / SENTENCEPIECE_FILE}: {pieces:,} pieces")


@prepare_app.command("vocabulary")
def vocabulary_command(
    encoder: Annotated[Path, typer.Argument(help="Local `transformers` folder of an XLM-RoBERTa.")],
    files: Annotated[list[Path], typer.Argument(metavar="TEXT_FILES...", help="One paragraph a line.")],
    output: Output,
    overwrite: Overwrite = False,
) -> None:
    """Trim an encoder's vocabulary to the pieces that texts of your languages need; name OUTPUT as model.initialise."""
    found = trim_vocabulary(encoder, files, output, overwrite)
    say(
        f"{output}: {found.pieces[1]:,} of {found.pieces[0]:,} pieces; {found.parameters[1]:,} of {found.parameters[0]:,} "
        f"parameters; {found.bytes[1] / 10**6:,.1f} of {found.bytes[0] / 10**6:,.1f} MB"
    )


@prepare_app.command("scenes")
def scenes_command(
    output: Output,
    train: Annotated[int, typer.Option(min=1, help="Training pictures.")] = 4000,
    held_out: Annotated[int, typer.Option(min=1, help="Pictures to search in afterwards.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed, another data set.")] = 0,
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 48,
    overwrite: Overwrite = False,
) -> None:
    """Draw the embedded data set: two coloured shapes a picture, captioned in en, de, fr, cs, ja and zh.

    Writes train/ and dev/ (pictures), text/LANG/, dictionary/ and tokenizer/. Needs no other input.
    """
    made = prepare_scenes(output, train, held_out, seed, size, overwrite)
    say(
        f"{output}: {made.train:,} training and {made.held_out:,} held-out scenes, {made.sentences:,} sentences, "
        f"{made.words:,} word pairs, {made.pieces:,} pieces"
    )


def index_command(
    folder: Annotated[Path, typer.Argument(help="Holds uncompressed .tar files.")],
    kind: Annotated[str, typer.Option(help=f"What a sample is: {', '.join(KINDS)}.")],
    language: Annotated[
        str | None, typer.Option(help="Language of text, or of captions that come as KEY.txt (then en by default).")
    ] = None,
) -> None:
    """Index WebDataset tars made elsewhere, such as by img2dataset: FOLDER gets one .idx a tar, and manifest.json."""
    say(f"{folder}: {describe(index_folder(folder, kind, language))}")


def describe(manifest: Manifest) -> str:
    """Return a manifest in one line."""
    holds = (
        f"language {manifest.language}"
        if KINDS[manifest.kind].needs_language
        else f"captions: {caption_counts(manifest)}"
    )
    regions = f"; regions {manifest.region_features} wide" if manifest.region_features else ""
    origin = "".join(f"; {name}: {value}" for name, value in manifest.origin.items())
    return f"{manifest.samples:,} samples in {len(manifest.shards)} shards; {holds}{regions}{origin}"
