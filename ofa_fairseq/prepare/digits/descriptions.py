"""What singles a digit out in its scene, in words: the ground of questions, phrases and premises."""

from itertools import combinations

from .balance import Balance
from .scenes import COLOURS, DIGIT_WORDS, QUADRANTS, SIZES, PlacedDigit, Scene

# Attribute -> its values, in the order of the words in a phrase.
ATTRIBUTES = {"size": SIZES, "colour": tuple(COLOURS), "word": DIGIT_WORDS, "quadrant": QUADRANTS}
LOOKS = ("size", "colour", "word")

Values = dict[str, str]  # some attributes with their values


def values_of(digit: PlacedDigit, attributes: tuple[str, ...]) -> Values:
    """The digit's values of these attributes."""
    return {name: getattr(digit, name) for name in attributes}


def fitting(scene: Scene, values: Values) -> list[PlacedDigit]:
    """The digits of the scene that have all these values."""
    return [
        digit
        for digit in scene.digits
        if all(getattr(digit, name) == value for name, value in values.items())
    ]


def noun(values: Values) -> str:
    """ "large red seven", "red digit" or "digit at the top left"."""
    adjectives = [values[name] for name in ("size", "colour") if name in values]
    place = ["at the", values["quadrant"]] if "quadrant" in values else []
    return " ".join([*adjectives, values.get("word", "digit"), *place])


def with_article(name: str) -> str:
    """ "a red seven", "an eight"."""
    return f"{'an' if name.startswith(('orange', 'eight')) else 'a'} {name}"


def subsets(attributes: tuple[str, ...], smallest: int = 1) -> list[tuple[str, ...]]:
    """All sets of at least so many of the attributes, small ones first."""
    sizes = range(smallest, len(attributes) + 1)
    return [subset for size in sizes for subset in combinations(attributes, size)]


def descriptions(scene: Scene, digit: PlacedDigit, attributes: tuple[str, ...] = LOOKS) -> list[Values]:
    """What singles the digit out: sets of attributes that no other digit shares and that need each of theirs."""
    found: list[Values] = []
    for subset in subsets(attributes):
        values = values_of(digit, subset)
        needless = any(known.keys() <= values.keys() for known in found)
        if not needless and fitting(scene, values) == [digit]:
            found.append(values)
    return found


def references(scene: Scene, digit: PlacedDigit, unsaid: str) -> list[Values]:
    """What means the digit without telling one of its attributes: descriptions of its looks, and its place."""
    looks = descriptions(scene, digit, tuple(name for name in LOOKS if name != unsaid))
    return looks if unsaid == "quadrant" else [*looks, values_of(digit, ("quadrant",))]


def changed(scene: Scene, values: Values, balance: Balance) -> Values | None:
    """The values with one of them changed so that no digit fits, or None if there is no such change.

    Where the scene allows, the new value is that of another digit: then each single word of the phrase is true of
    something in the picture.
    """
    names = balance.shuffled(list(values))
    for only_seen in (True, False):
        for name in names:
            seen = {getattr(digit, name) for digit in scene.digits}
            options = [values | {name: value} for value in ATTRIBUTES[name] if value in seen or not only_seen]
            options = [option for option in options if not fitting(scene, option)]
            if options:
                return balance.one_of(options)
    return None
