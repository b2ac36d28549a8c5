"""Names of classes in a checkpoint against those that are given: in order, in another, or none at all."""

from pathlib import Path
from typing import Any

import pytest

from segrow.errors import UserError
from segrow.model.own_names import compare_names

FILE = Path("net.pth")
CHANNELS = 4
NAMES = ["cat", "dog", "bird"]
RIGHT: list[Any] = [
    ["background", *NAMES],
    ("_background_", *NAMES),
    NAMES,
    {"background": 0, "cat": 1, "dog": 2, "bird": 3},
    {"bird": 3, "dog": 2, "cat": 1, "background": 0, "ignore": 255},
    {0: "background", 1: "cat", 2: "dog", 3: "bird"},
    {"0": "background", "3": "bird", "2": "dog", "1": "cat"},
    {1: "cat", 2: "dog", 3: "bird"},
    {"Cat": 1, "DOG": 2, "bird ": 3},
    {0: "cat", 1: "dog", 2: "bird"},  # of the classes alone
]
KEYS = ("CLASSES", "class_names", "class_to_idx", "id2label", "names")


@pytest.mark.parametrize("own", RIGHT)
def test_what_agrees_is_not_told(own: Any) -> None:
    for key in KEYS:
        for content in ({key: own}, {"state_dict": {}, "meta": {"config": {key: own}}}):
            assert compare_names(FILE, NAMES, CHANNELS, content) == []
            assert compare_names(FILE, ["background", *NAMES], CHANNELS, content) == []


@pytest.mark.parametrize("own", RIGHT)
def test_another_order_is_refused(own: Any) -> None:
    swapped = ["dog", "cat", "bird"]
    with pytest.raises(UserError) as caught:
        compare_names(FILE, swapped, CHANNELS, {"class_to_idx": own})
    assert "(class_to_idx), got --names dog, cat, bird; give them in the order of the file" in str(
        caught.value
    )
    assert '("dog" is in channel 2 there, in 1 here)' in str(caught.value)


def test_one_name_at_another_channel_is_enough() -> None:
    with pytest.raises(UserError, match=r'"cat" is in channel 1 there, in 3 here'):
        compare_names(FILE, ["chien", "oiseau", "cat"], CHANNELS, {"classes": NAMES})


@pytest.mark.parametrize(
    "own",
    [
        ["cat", "dog", "bird", "cow"],
        ["cat", "dog", "bird", "background"],
        {0: "cat", 1: "dog", 2: "bird", 3: "cow"},
        {"cat": 0, "dog": 1, "bird": 2, "cow": 3},
    ],
)
def test_a_first_channel_that_is_not_background_is_refused(own: Any) -> None:
    for names in (NAMES, ["dog", "bird", "cow"]):
        with pytest.raises(UserError, match='so the first is "cat"; segrow needs background there: train'):
            compare_names(FILE, names, CHANNELS, {"class_names": own})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"classes": ["thing", "dog", "bird"]},
            "it lists its classes as thing, dog, bird (classes); here they",
        ),
        (
            {"id2label": {0: "background", 1: "chat", 2: "chien", 3: "oiseau"}},
            "as chat, chien, oiseau (id2label)",
        ),
        (
            {"classes": ["cat", "dog"]},
            "it lists its classes as cat, dog (classes); here they are called cat, dog",
        ),
        (
            {"classes": ["void", *NAMES]},
            'its first channel is "void" (classes), which is taken as background',
        ),
        (
            {"classes": NAMES, "meta": {"CLASSES": ["a", "b", "c"]}},
            "it lists its classes as a, b, c (CLASSES)",
        ),
    ],
)
def test_other_names_are_told(content: Any, says: str) -> None:
    notes = compare_names(FILE, NAMES, CHANNELS, content)
    assert len(notes) == 1
    assert says in notes[0]


@pytest.mark.parametrize(
    "content",
    [
        {"classes": [1, 2, 3]},
        {"classes": []},
        {"classes": {"cat": 5, "dog": 9}},
        {"classes": {"cat": True}},
        {"classes": {"0": "1"}},
        {"classes": {}},
        {"names": "cat"},
        {"epoch": 3},
        {"a": {"b": {"c": {"d": {"classes": ["x"]}}}}},
        [],
    ],
)
def test_what_is_no_list_of_names(content: Any) -> None:
    assert compare_names(FILE, NAMES, CHANNELS, content) == []
