"""Tables whose quotation marks or fields do not fit: what would make other captions is refused, naming the line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.prepare.tables import open_table
from tests.prepare.sets.raw import picture, run, stored


def read(path: Path, text: str, separator: str = "\t") -> list[tuple[int, dict[str, str] | str]]:
    path.write_text(text)
    with open_table(path, separator, "give a table") as table:
        return list(table.rows)


def test_fields_in_quotation_marks_blank_lines_and_short_lines(tmp_path: Path) -> None:
    found = read(tmp_path / "a.tsv", 'a\tb\n"x ""y"""\tsix "\'\n\n"two\nlines"\t\nz\n')
    assert found == [(2, {"a": 'x "y"', "b": "six \"'"}), (4, {"a": "two\nlines", "b": ""}), (6, {"a": "z"})]
    assert read(tmp_path / "empty.tsv", "") == []


def test_a_line_with_more_fields_than_names_is_a_mistake_and_the_rest_is_read(tmp_path: Path) -> None:
    wrong, right = read(tmp_path / "a.csv", "a,b\nx,a dog, running\ny,a cat\n", ",")
    assert wrong[0] == 2
    assert "3 fields, the last of them ' running'; the rule is 2" in str(wrong[1])
    assert right == (3, {"a": "y", "b": "a cat"})


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ('x\t"a dog\ny\ta cat\nz\ta cow\n', "unexpected end of data"),
        ('x\t"a dog\ny\ta cat" yes\nz\ta cow\n', "expected after"),
        ('x\t"a dog\ny\ta cat"\nz\ta cow\n', "a field would hold other columns, up to line 4"),
        ('x\t"a dog" on a sofa\n', "expected after"),
    ],
)
def test_quotation_marks_that_do_not_pair_up_are_refused_where_they_begin(tmp_path: Path, lines: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"a\.tsv, line 3: its quotation marks do not pair up \(.*{why}"):
        read(tmp_path / "a.tsv", "a\tb\nw\tfirst\n" + lines)


def test_a_name_over_two_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the name 'b' stands over several columns"):
        read(tmp_path / "a.tsv", "a\tb\tb\nx\ty\tz\n")


def _open_clip(folder: Path, caption: str) -> Path:
    (folder / "t.tsv").write_text(f"filepath\ttitle\np0.jpg\t{caption}\np1.jpg\ta cat\n")
    run("open-clip", folder / "t.tsv", output=folder / "out")
    return folder / "out"


def _wit(folder: Path, caption: str) -> Path:
    names = "language\timage_url\tcaption_reference_description"
    (folder / "t.tsv").write_text(f"{names}\nde\thttp://x/p0.jpg\t{caption}\nde\thttp://x/p1.jpg\tKatze\n")
    run("wit", folder / "t.tsv", "--images", folder, output=folder / "out")
    return folder / "out"


@pytest.mark.parametrize("importer", [_open_clip, _wit])
def test_every_importer_of_tables_reads_them_so(tmp_path: Path, importer: Callable[[Path, str], Path]) -> None:
    for number in range(2):
        picture(tmp_path / f"p{number}.jpg", 90 * number)
    with pytest.raises(UserError, match=r"t\.tsv, line 2: its quotation marks do not pair up"):
        importer(tmp_path, '"a dog')
    with pytest.raises(UserError, match=r"line 2: .* fields, the last of them 'running'"):
        importer(tmp_path, "a dog\trunning")
    found = stored(importer(tmp_path, '"a ""big"" dog"'))
    assert ['a "big" dog'] in [texts for record in found.values() for texts in record["captions"].values()]
