"""Reading captions back: true ones are all right, and each kind of mistake is found as what it is."""

import json
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ofa_fairseq.prepare.__main__ import main
from ofa_fairseq.prepare.digits import Scene, captions, random_scenes
from ofa_fairseq.prepare.digits.handwriting import handwriting_splits
from ofa_fairseq.prepare.digits.reading import (
    Mention,
    Reading,
    Relation,
    parse_caption,
    read_caption,
    read_captions,
    reading_table,
)
from ofa_fairseq.prepare.digits.scenes import COLOURS, DIGIT_WORDS, QUADRANTS, SIZES, random_scene

scenes = st.integers(0, 2**32 - 1).map(
    lambda seed: random_scene(np.random.default_rng(seed), "7", handwriting_splits(1)["train"])
)
colours, sizes, words, places = map(st.sampled_from, (list(COLOURS), SIZES, DIGIT_WORDS, QUADRANTS))
mentions = st.lists(st.tuples(sizes, colours, words, places), max_size=5)


@given(scenes)
@settings(deadline=None)
def test_every_reference_reads_as_all_right(scene: Scene) -> None:
    for text in captions(scene):
        score = read_caption(text, scene).score()
        assert {value for value in score.values() if value == value} == {1.0}, (text, score)
        assert [score[name] for name in ("digits", "colours", "sizes", "nothing invented", "exact")] == [
            1.0
        ] * 5


@given(scenes)
@settings(deadline=None)
def test_mentions_and_relations_are_true_of_the_boxes(scene: Scene) -> None:
    """The i-th mention is the i-th digit; "left" and "above" are checked on the pixels of the boxes."""
    for text in captions(scene):
        read = parse_caption(text)
        truth = [(digit.digit, digit.colour, digit.size) for digit in scene.digits]
        assert [(mention.digit, mention.colour, mention.size) for mention in read] == truth
        for mention, digit in zip(read, scene.digits):
            assert mention.place in (None, digit.quadrant)
            for relation in mention.relations:
                other = scene.digits[relation.other].box
                horizontal = {-1: digit.box[2] < other[0], 1: digit.box[0] > other[2], 0: True}
                vertical = {-1: digit.box[3] < other[1], 1: digit.box[1] > other[3], 0: True}
                assert horizontal[relation.columns], text
                assert vertical[relation.rows], text


@given(scenes)
@settings(deadline=None)
def test_every_reference_of_several_digits_states_places_or_relations_of_all(scene: Scene) -> None:
    assume(len(scene.digits) > 1)
    for text in captions(scene):
        read = parse_caption(text)
        related = {i for i, mention in enumerate(read) if mention.relations}
        related |= {relation.other for mention in read for relation in mention.relations}
        assert all(mention.place for mention in read) or related == set(range(len(read)))


def test_the_relations_of_four_digits_as_a_person_reads_them() -> None:
    top = "a large red one to the left of a small blue two"
    text = f"{top} both above a large cyan six to the left of a small pink nine"
    left, above = (-1, 0), (0, -1)
    assert [mention.relations for mention in parse_caption(text)] == [
        (Relation(1, *left), Relation(2, *above), Relation(3, *above)),
        (Relation(2, *above), Relation(3, *above)),
        (Relation(3, *left),),
        (),
    ]


@given(scenes, st.integers(0, 3), colours, st.integers(0, 4))
@settings(deadline=None)
def test_a_wrong_colour_costs_that_colour_only(scene: Scene, index: int, colour: str, phrasing: int) -> None:
    count = len(scene.digits)
    digit = scene.digits[index % count]
    assume(colour != digit.colour)
    digits = list(scene.digits)
    digits[index % count] = replace(digit, colour=colour)
    score = read_caption(captions(replace(scene, digits=tuple(digits)))[phrasing], scene).score()
    assert score["colours"] == pytest.approx((count - 1) / count)
    assert (score["digits"], score["sizes"], score["nothing invented"], score["exact"]) == (1, 1, 1, 0)


@given(scenes, st.integers(0, 3))
@settings(deadline=None)
def test_a_digit_left_out_is_missed_but_nothing_is_invented(scene: Scene, index: int) -> None:
    count = len(scene.digits)
    kept = [f"{digit.name} {digit.quadrant}" for i, digit in enumerate(scene.digits) if i != index % count]
    score = read_caption(" ".join(kept), scene).score()
    assert [score[name] for name in ("digits", "colours", "sizes")] == pytest.approx(
        [(count - 1) / count] * 3
    )
    assert (score["nothing invented"], score["exact"]) == (1, 0)


@given(scenes, sizes, colours, words, st.integers(0, 4))
@settings(deadline=None)
def test_one_digit_too_many_is_invented(
    scene: Scene, size: str, colour: str, word: str, phrasing: int
) -> None:
    score = read_caption(f"{captions(scene)[phrasing]} and a {size} {colour} {word}", scene).score()
    assert (score["digits"], score["nothing invented"], score["exact"]) == (1, 0, 0)


@given(scenes, st.integers(0, 3), words)
@settings(deadline=None)
def test_a_wrong_digit_is_wrong_and_invented(scene: Scene, index: int, word: str) -> None:
    digit = scene.digits[index % len(scene.digits)]
    assume(word != digit.word)
    digits = list(scene.digits)
    digits[index % len(digits)] = replace(digit, digit=DIGIT_WORDS.index(word))
    score = read_caption(captions(replace(scene, digits=tuple(digits)))[0], scene).score()
    assert score["digits"] == pytest.approx((len(digits) - 1) / len(digits))
    assert (score["nothing invented"], score["exact"]) == (0, 0)


@given(scenes)
@settings(deadline=None)
def test_a_wrong_place_or_relation_is_found(scene: Scene) -> None:
    opposite = {
        "left": "right",
        "right": "left",
        "top": "bottom",
        "bottom": "top",
        "above": "below",
        "below": "above",
    }
    for text in captions(scene):
        turned = re.sub("|".join(opposite), lambda match: opposite[match[0]], text)
        score = read_caption(turned, scene).score()
        assert (score["digits"], score["colours"], score["sizes"], score["exact"]) == (1, 1, 1, 0)
        assert 0 in (score["places"], score["relations"]), turned


@given(mentions, scenes)
@settings(deadline=None)
def test_mentions_are_assigned_so_that_most_agrees(
    said: list[tuple[str, str, str, str]], scene: Scene
) -> None:
    """Against all one-to-one assignments of mentions to the scene's digits."""
    reading = read_caption(" ".join(" ".join(mention) for mention in said), scene)
    truth = [(digit.size, digit.colour, digit.word, digit.quadrant) for digit in scene.digits]
    padded = [*said, *[("",) * 4] * len(truth)]
    best = max(
        sum(a == b for mention, digit in zip(chosen, truth) for a, b in zip(mention, digit))
        for chosen in permutations(padded, len(truth))
    )
    assert reading.digit_right + reading.colour_right + reading.size_right + reading.place_right == best


@given(
    st.text(),
    st.lists(st.sampled_from([*DIGIT_WORDS, *COLOURS, *SIZES, *QUADRANTS, "above", "to the left of", "x"])),
)
@settings(deadline=None)
def test_nonsense_is_read_without_error(text: str, words: list[str]) -> None:
    scene = next(random_scenes("test", 1, 1))
    for nonsense in (text, " ".join(words)):
        score = read_caption(nonsense, scene).score()
        assert all(0 <= value <= 1 for value in score.values() if value == value)


def test_unusable_words_case_and_spaces_do_not_matter() -> None:
    expected = [Mention(7, "red", "large", "top left"), Mention(3, None, "small")]
    assert (
        parse_caption("well  a LARGE very red, seven\nTop  Left!! someone small sometimes three") == expected
    )


def test_an_empty_caption_says_nothing() -> None:
    scene = next(random_scenes("test", 1, 1))
    assert read_caption("", scene) == Reading(scenes=1, digits=len(scene.digits), nothing_invented=True)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, dict[str, str]]:
    """Scenes, a file for predictions, and captions of which the first is empty and the second lacks its colours."""
    truth = list(random_scenes("test", 30, 1))
    scenes_file = tmp_path / "scenes_test.jsonl"
    scenes_file.write_text("".join(scene.to_json() + "\n" for scene in truth))
    texts = {scene.image_id: captions(scene)[i % 5] for i, scene in enumerate(truth)}
    first, second = list(texts)[:2]
    texts[first] = ""
    texts[second] = re.sub("|".join(COLOURS), "", texts[second])
    return scenes_file, tmp_path / "predictions", texts


def test_the_command_prints_the_table_of_either_form_of_predictions(
    files: tuple[Path, Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    scenes_file, predictions, texts = files
    command = ["read_captions", "--scenes", str(scenes_file), "--predictions", str(predictions)]
    truth = {scene.image_id: scene for scene in random_scenes("test", 30, 1)}
    lost = [len(scene.digits) for scene in list(truth.values())[:2]]
    total = sum(len(scene.digits) for scene in truth.values())

    predictions.write_text(json.dumps([{"image_id": key, "caption": text} for key, text in texts.items()]))
    main(command)
    table = capsys.readouterr().out
    assert table == reading_table(read_captions((texts[key], truth[key]) for key in truth)) + "\n"
    numbers = table.splitlines()[-1].split()
    assert numbers[:2] == ["all", "30"]
    assert float(numbers[2]) == pytest.approx(100 * (total - lost[0]) / total, abs=0.05)
    assert float(numbers[3]) == pytest.approx(100 * (total - sum(lost)) / total, abs=0.05)
    assert [float(number) for number in numbers[5:]] == [
        100,
        100,
        100,
        pytest.approx(100 * 28 / 30, abs=0.05),
    ]

    # fairseq-generate's order is its own, worse hypotheses follow, and a picture may lack its line.
    lines = [
        f"H-{key}\t-0.1\tx\nD-{key}\t-0.1\t{text}\nD-{key}\t-0.7\tone" for key, text in texts.items() if text
    ]
    predictions.write_text("\n".join(["| loading", *reversed(lines)]) + "\n")
    main(command)
    assert capsys.readouterr().out == table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 5, "caption": "one"}]', "1 ids are not in"),
        ('[{"image": 5}]', "expected JSON list"),
        ("[{", "expected JSON list"),
        ("D-5\tone", "line 1: expected D-<id>"),
        ("", "found no caption"),
    ],
)
def test_unusable_predictions_are_named(
    files: tuple[Path, Path, dict[str, str]], content: str, message: str
) -> None:
    files[1].write_text(content)
    with pytest.raises(SystemExit, match=message):
        main(["read_captions", "--scenes", str(files[0]), "--predictions", str(files[1])])
