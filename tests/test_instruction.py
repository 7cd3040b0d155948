import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_fairseq.data.boxes import BoxFrame
from ofa_fairseq.data.text_normalize import pre_caption, pre_question, strip_punctuation
from ofa_fairseq.instruction import RELEASED, InstructionError, Slot, Value, parse
from ofa_fairseq.instruction.__main__ import main as explain
from ofa_fairseq.vocabulary import Vocabulary

NOTATION = st.sampled_from(
    ["[box:x]", "[text:y]", "<bin_3>", "<mask>", "->", " -> ", "</s>", "[[", "\\", " ", "\t"]
)
ANY_TEXT = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")) | NOTATION).map(
    "".join
)
LABELS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}


@pytest.fixture(scope="module")
def vocabulary(sentencepiece_dir: Path) -> Vocabulary:
    return Vocabulary.load(str(sentencepiece_dir), num_codes=8, num_bins=100)


@pytest.fixture(scope="module")
def released_vocabulary(gpt2_bpe_dir: Path) -> Vocabulary:
    return Vocabulary.load(str(gpt2_bpe_dir))


# The notation


def test_parts_and_slots() -> None:
    instruction = parse("[image:picture]  what is it? region: [box:region] -> [text:caption]")
    image, box, text = Slot("image", "picture"), Slot("box", "region"), Slot("text", "caption")
    assert instruction.source == (image, "  what is it? region:", box)
    assert instruction.target == (" ", text)
    assert instruction.slots("source") == (image, box)
    assert instruction.slots("target") == (text,)


@pytest.mark.parametrize(
    ("line", "source", "target"),
    [
        ("a ->[text:x]", ("a",), (Slot("text", "x"),)),
        ("a->[text:x]", ("a",), (Slot("text", "x"),)),
        ("a -> yes ", ("a",), (" yes",)),
        (" [image:a] [image:b] a -> b", (Slot("image", "a"), Slot("image", "b"), " a"), (" b",)),
        ("[text:x] [text:y]  -> b", (Slot("text", "x"), " ", Slot("text", "y")), (" b",)),
        (
            "a -> [box:x] [box:y] [label:z] ",
            ("a",),
            (Slot("box", "x"), Slot("box", "y"), " ", Slot("label", "z")),
        ),
        (r"\[text:x] \-> \\ a-b->c", (r"[text:x] -> \ a-b",), ("c",)),
        (" -> [text:x]", (), (" ", Slot("text", "x"))),
    ],
)
def test_white_space_and_escapes(line: str, source: Any, target: Any) -> None:
    instruction = parse(line)
    assert (instruction.source, instruction.target) == (source, target)


@pytest.mark.parametrize(
    ("line", "caret", "problem"),
    [
        ("what is it?", 11, "no arrow: expected ' -> '"),
        ("", 0, "no arrow"),
        ("a -> b -> c", 7, "a second arrow"),
        ("a [img:x] -> b", 3, "unknown slot type 'img': expected one of image, text, label, box, codes"),
        ("\ta [:x] -> b", 4, "unknown slot type ''"),
        ("a [text] -> b", 2, "expected [type:name]"),
        ("a [text:x -> b", 2, "a bracket that is not closed"),
        ("a [text:[box:x]] -> b", 2, "a bracket that is not closed"),
        ("a [text:] -> b", 8, "invalid name ''"),
        ("a [text:2 b] -> b", 8, "invalid name '2 b'"),
        ("a -> [image:x]", 5, "an image in the target"),
        ("[image:x][image:y] [image:z] -> a", 19, "a third image: expected two at most"),
        ("a [text:x] -> [box:x]", 14, "'x' is used as text already"),
        ("a ->  ", 6, "an empty target"),
        (r"a \n -> b", 2, "expected \\[, \\-> or \\\\ at this backslash"),
        ("a -> b\\", 6, "at this backslash"),
    ],
)
def test_mistakes_show_the_place(line: str, caret: int, problem: str) -> None:
    with pytest.raises(InstructionError) as error:
        parse(line)
    message, shown, under = str(error.value).split("\n")
    assert problem in message
    assert shown == f"  {line}"
    assert under == "  " + re.sub(r"[^\t]", " ", line)[:caret].ljust(caret) + "^"


def test_two_lines() -> None:
    with pytest.raises(InstructionError, match="expected a single line"):
        parse("a -> b\nc")


def test_check_names_the_missing_column() -> None:
    instruction = parse("[image:photo] what is it? -> [text:name]")
    instruction.check(["name", "photo", "id"])
    with pytest.raises(InstructionError) as error:
        instruction.check(["id", "photo"])
    assert str(error.value).split("\n") == [
        "no column 'name': expected one of id, photo",
        "  [image:photo] what is it? -> [text:name]",
        "                               ^",
    ]


# Filling and encoding


@given(thing=ANY_TEXT, place=ANY_TEXT)
def test_text_slots_equal_the_filled_string(vocabulary: Vocabulary, thing: str, place: str) -> None:
    instruction = parse('[image:photo] is the " [text:thing] " at [label:place]? -> [text:thing]')
    values = {"thing": thing, "place": place}
    assert instruction.encode_source(values, vocabulary) == vocabulary.encode(
        f' is the " {thing} " at {place}?'
    )
    assert instruction.encode_target(values, vocabulary) == vocabulary.encode(f" {thing}")


@given(first=ANY_TEXT, second=ANY_TEXT, box=st.lists(st.integers(0, 99), min_size=4, max_size=4))
def test_content_injects_nothing(vocabulary: Vocabulary, first: str, second: str, box: list[int]) -> None:
    instruction = parse("[text:first] [image:photo][text:second] [box:region] [text:first] -> [codes:codes]")
    values: dict[str, Value] = {"first": first, "second": second, "region": box, "codes": [7, 0]}
    ids = instruction.encode_source(values, vocabulary)
    expected = [first, second, "".join(f"<bin_{b}>" for b in box), " " + first]
    # White space of the content stays, that of the line before the picture and the box goes.
    assert vocabulary.decode(ids) == "".join(expected)
    assert [i for i in ids if not 4 <= i < vocabulary.mask] == vocabulary.bin_ids(box)
    assert instruction.encode_target(values, vocabulary) == vocabulary.code_ids([7, 0])


@given(text=ANY_TEXT, box=st.lists(st.integers(0, 99), min_size=4, max_size=4))
@pytest.mark.parametrize("name", RELEASED)
def test_fill_shows_what_decode_shows(vocabulary: Vocabulary, name: str, text: str, box: list[int]) -> None:
    instruction = parse(RELEASED[name])
    contents: dict[str, Value] = {
        "image": "unused",
        "text": text,
        "label": text,
        "box": box,
        "codes": [1, 2, 3],
    }
    slots = instruction.slots("source") + instruction.slots("target")
    values = {slot.name: contents[slot.type] for slot in slots}
    source = instruction.encode_source(values, vocabulary)
    target = instruction.encode_target(values, vocabulary)
    assert instruction.fill("source", values) == vocabulary.decode(source)
    assert instruction.fill("target", values) == vocabulary.decode(target)


@given(text=ANY_TEXT.map(lambda text: "".join(text.split())))
def test_escaped_text_is_literal(text: str) -> None:
    escaped = re.sub(r"[\[\\]|->", lambda match: "\\" + match.group(), text)
    assert parse(f"[image:x]{escaped}. -> y").source[1:] == (f"{text}.",)


@pytest.mark.parametrize(
    ("line", "values", "problem"),
    [
        ("[text:x] -> a", {"y": "b"}, r"no value for \[text:x\]: got values for y"),
        ("[text:x] -> a", {"x": [1]}, r"\[text:x\] takes a string, got \[1\]"),
        ("[box:x] -> a", {"x": [1, 2, 3]}, r"\[box:x\] takes 4 bins, got \[1, 2, 3\]"),
        ("[box:x] -> a", {"x": "1 2 3 4"}, r"\[box:x\] takes 4 bins, got '1 2 3 4'"),
        ("[box:x] -> a", {"x": [1, 2, 3, 100]}, "100 is no bin: expected 0 to 99"),
        ("[codes:x] -> a", {"x": "12"}, r"\[codes:x\] takes image codes"),
    ],
)
def test_wrong_values(vocabulary: Vocabulary, line: str, values: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(line).encode_source(values, vocabulary)


# The released instructions


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("caption", " what does the image describe?"),
        ("vqa", " {question}"),
        ("vqa_objects", " {question} object: {objects}"),
        ("refcoco", ' which region does the text " {phrase} " describe?'),
        ("snli_ve", ' does the image describe " {hypothesis} "?'),
        ("snli_ve_caption", ' can image and text1 " {caption} " imply text2 " {hypothesis} "?'),
        ("image_gen", " what is the complete image? caption: {caption}"),
        ("matching", ' does the image describe " {caption} "?'),
        ("question_matching", ' what is the answer to question " {question} ". is " {answer} "?'),
        ("grounded_caption", "  what does the region describe? region:<bin_0><bin_1><bin_2><bin_3>"),
        ("text_infilling", ' what is the complete text of " {noised} "?'),
        ("image_infilling", " what is the image in the middle part?"),
        ("detection", " what are the objects in the image?"),
        ("cola", ' is the text " {sentence} " grammatically correct?'),
        ("mnli", ' can text1 " {sentence1} " imply text2 " {sentence2} "?'),
        ("mrpc", ' does text1 " {sentence1} " and text2 " {sentence2} " have the same semantics?'),
        ("qnli", ' does " {sentence} " contain the answer to question " {question} "?'),
        ("qqp", ' is question " {question1} " and question " {question2} " equivalent?'),
        ("rte", ' can text1 " {sentence1} " imply text2 " {sentence2} "?'),
        ("sst2", ' is the sentiment of text " {sentence} " positive or negative?'),
        ("gigaword", ' what is the summary of article " {article} "?'),
        ("imagenet", " what does the image describe?"),
    ],
)
def test_released_sources(name: str, source: Any) -> None:
    instruction = parse(RELEASED[name])
    values = {slot.name: f"{{{slot.name}}}" for slot in instruction.slots("source")} | {
        "region": [0, 1, 2, 3]
    }
    assert instruction.fill("source", values) == source


@pytest.mark.parametrize("name", RELEASED)
def test_released_targets(name: str) -> None:
    instruction = parse(RELEASED[name])
    values = {
        slot.name: {"box": [0, 1, 2, 3], "codes": [5, 6]}.get(slot.type, "a")
        for slot in instruction.slots("target")
    }
    other = {
        "refcoco": "<bin_0><bin_1><bin_2><bin_3>",
        "detection": "<bin_0><bin_1><bin_2><bin_3> a",
        "image_gen": "<code_5><code_6>",
        "image_infilling": "<code_5><code_6>",
        "gigaword": "a",
    }
    assert instruction.fill("target", values) == other.get(name, " a")


def row_values(case: dict) -> tuple[str, dict]:
    """Name of the released instruction and its values, from a reference row as a task would make them."""
    row, options = dict(zip(case["columns"].split(), case["row"])), case["options"]
    words = options.get("max_src_length", 80)
    if case["task"] == "caption":
        if case["split"] == "train":
            return "caption", {
                "caption": " ".join(strip_punctuation(row["caption"]).split()[: options["max_tgt_length"]])
            }
        captions = " ".join(row["captions"].split()).split("&&")
        return "caption", {"caption": "&&".join(map(strip_punctuation, captions))}
    if case["task"] == "vqa_gen":
        question = pre_question(row["question"], words).removesuffix("?") + "?"
        confidence_answer = [item.split("|!+") for item in row["answers"].split("&&")]
        values = {"question": question, "answer": max(confidence_answer, key=lambda pair: float(pair[0]))[1]}
        if options["add_object"]:
            return "vqa_objects", values | {"objects": " ".join(row["objects"].split("&&"))}
        return "vqa", values
    if case["task"] == "refcoco":
        corners = [float(corner) for corner in row["box"].split(",")]
        ratios = [case["w_resize_ratio"], case["h_resize_ratio"]] * 2
        return "refcoco", {
            "phrase": pre_caption(row["text"], words),
            "region": [corner * ratio for corner, ratio in zip(corners, ratios)],
        }
    if case["task"] == "snli_ve":
        name = "snli_ve_caption" if options["add_caption"] else "snli_ve"
        hypothesis, caption = (pre_caption(row[column], words) for column in ("hypothesis", "caption"))
        return name, {"hypothesis": hypothesis, "caption": caption, "relation": LABELS[row["label"]]}
    codes = [int(code) for code in row["codes"].split()] if "codes" in row else [0] * 1024
    return "image_gen", {
        "caption": " ".join(row["text"].split()[: options["max_src_length"]]),
        "drawing": codes,
    }


def test_released_rows(released_vocabulary: Vocabulary, reference_dir: Path) -> None:
    cases = json.loads((reference_dir / "rows.json").read_text())
    assert {case["task"] for case in cases} == {"caption", "vqa_gen", "refcoco", "snli_ve", "image_gen"}
    for case in cases:
        name, values = row_values(case)
        if "region" in values:
            span = case["options"]["max_image_size"]  # these boxes are in pixels of the resized picture
            values["region"] = BoxFrame(span, span, span, span, 1000).quantize(tuple(values["region"]))
        instruction = parse(RELEASED[name])
        assert [0, *instruction.encode_source(values, released_vocabulary), 2] == case["source"], case["row"]
        target = [token for token in case["target"] if token != 1]
        assert [*instruction.encode_target(values, released_vocabulary), 2] == target, case["row"]


def test_command_prints_the_table() -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "ofa_fairseq.instruction"]
    printed = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    width = len("question_matching")
    assert {line[:width].strip(): line[width + 2 :] for line in printed} == RELEASED


def test_command_explains_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    explain([r'[image:photo] is the "[text:thing]" \-> at [box:place] red? -> [label:answer] [text:thing]'])
    assert capsys.readouterr().out.splitlines() == [
        "source   image  [image:photo]",
        """source   text   ' is the "[text:thing]" -> at'""",
        "source   box    [box:place]",
        "source   text   ' red?'",
        "target   text   ' [label:answer] [text:thing]'",
        "columns  id,photo,thing,place,answer",
    ]


@pytest.mark.parametrize("name", ["caption", "grounded_caption", "image_gen"])
def test_command_explains_a_released_instruction_by_its_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    explain([RELEASED[name]])
    expected = capsys.readouterr().out
    explain([name])
    assert capsys.readouterr().out == f"line     {RELEASED[name]}\n{expected}"


def test_command_shows_the_place_of_a_mistake() -> None:
    with pytest.raises(SystemExit) as stopped:
        explain(["[img:photo] what? -> [text:answer]"])
    assert str(stopped.value) == (
        "unknown slot type 'img': expected one of image, text, label, box, codes\n"
        "  [img:photo] what? -> [text:answer]\n"
        "   ^"
    )
