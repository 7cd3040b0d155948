"""Five true captions of a scene. Each names every digit with size and colour, in reading order.

    places      large red seven top left small blue three bottom right
                a large red seven at the top left and a small blue three at the bottom right
                top left a large red seven bottom right a small blue three
    relations   a large red seven above and to the left of a small blue three
                a large red seven and below it to the right a small blue three

How relations read where there are more than two digits: "left" and "right" stand between the two digits
around them, which share a row; "above" and "below" stand between everything named before (the top row) and
everything named after (the bottom row). A scene of one digit has no relations: two more phrasings of its
place take their turn.

Captions have at most 27 words, since the released pipeline cuts training captions after 30.
"""

from .scenes import PlacedDigit, Scene

CAPTIONS_PER_SCENE = 5


def _terse(scene: Scene) -> str:
    return " ".join(f"{digit.name} {digit.quadrant}" for digit in scene.digits)


def _place_last(scene: Scene) -> str:
    # Four digits with "at the" would be longer than the pipeline's 30 words.
    at = "at the " if len(scene.digits) < 4 else ""
    return " and ".join(f"a {digit.name} {at}{digit.quadrant}" for digit in scene.digits)


def _place_first(scene: Scene) -> str:
    return " ".join(f"{digit.quadrant} a {digit.name}" for digit in scene.digits)


def _rows(scene: Scene) -> list[list[PlacedDigit]]:
    """The digits of the top and of the bottom row, empty rows left out."""
    rows = ([digit for digit in scene.digits if digit.row == row] for row in (0, 1))
    return [row for row in rows if row]


def _side(first: PlacedDigit, second: PlacedDigit) -> str:
    """Where the second digit is from the first, if they are not in one column: "left", "right" or ""."""
    return ("left", "", "right")[second.column - first.column + 1]


def _above(scene: Scene) -> str:
    """The top row above the bottom row, each from left to right."""
    rows = _rows(scene)
    texts = [" to the left of ".join(f"a {digit.name}" for digit in row) for row in rows]
    match [len(row) for row in rows]:
        case [1, 1]:
            side = _side(*scene.digits)
            link = f"above and to the {'left' if side == 'right' else 'right'} of" if side else "above"
        case [1, 2]:
            # "a above b to the left of c" would leave open which of the two is to the left of c.
            texts[1] = " and ".join(f"a {digit.name}" for digit in rows[1])
            link = "above both"
        case _:
            link = "both above"
    return f" {link} ".join(texts)


def _below(scene: Scene) -> str:
    """The same from the other side: what is to the right and below."""
    rows = _rows(scene)
    texts = [" and to its right ".join(f"a {digit.name}" for digit in row) for row in rows]
    match [len(row) for row in rows]:
        case [1, 1]:
            side = _side(*scene.digits)
            link = f"below it to the {side}" if side else "below it"
        case [1, 2]:
            link = "below it"
        case _:
            link = "below them"
    return f" and {link} ".join(texts)


def _only(scene: Scene) -> list[str]:
    (digit,) = scene.digits
    return [f"{start} {digit.name} at the {digit.quadrant}" for start in ("only a", "there is a")]


def captions(scene: Scene) -> list[str]:
    """Five different captions of a scene, lower case, without punctuation."""
    related = _only(scene) if len(scene.digits) == 1 else [_above(scene), _below(scene)]
    return [_terse(scene), _place_last(scene), _place_first(scene), *related]
