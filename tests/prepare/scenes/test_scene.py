import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3p.errors import UserError
from m3p.prepare.scenes.scene import MIRROR, RELATIONS, THINGS, Scene, sample_scenes

SCENES = st.builds(Scene, st.sampled_from(THINGS), st.sampled_from(THINGS), st.sampled_from(RELATIONS))


@given(SCENES)
def test_mirroring_twice_changes_nothing(scene: Scene) -> None:
    assert scene.mirrored().mirrored() == scene
    assert scene.mirrored() != scene


@pytest.mark.long
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_no_picture_is_on_both_sides(seed: int) -> None:
    train, held_out = sample_scenes(seed, 4000, 100)
    assert (len(train), len(held_out)) == (4000, 100)
    pictures = {scene for held in held_out for scene in (held, held.mirrored())}
    assert len(pictures) == 200
    assert not pictures & set(train)
    assert len({scene for trained in train for scene in (trained, trained.mirrored())}) == 8000


def test_all_words_are_met_in_training() -> None:
    train, held_out = sample_scenes(0, 400, 100)
    assert {scene.relation for scene in train} == {scene.relation for scene in held_out} == set(MIRROR)
    assert {thing for scene in train for thing in (scene.first, scene.second)} == set(THINGS)


def test_held_out_does_not_depend_on_the_size_of_training() -> None:
    assert sample_scenes(3, 10, 20)[1] == sample_scenes(3, 500, 20)[1]
    assert sample_scenes(3, 10, 20)[1] != sample_scenes(4, 10, 20)[1]


@pytest.mark.long
def test_there_are_only_so_many() -> None:
    assert len(sample_scenes(0, 32_412, 100)[0]) == 32_412
    with pytest.raises(UserError, match=r"--train 32413 .* 32,512 scenes"):
        sample_scenes(0, 32_413, 100)
