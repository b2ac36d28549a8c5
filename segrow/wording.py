"""Words that depend on a number.

count(1, "image")      1 image
count(2, "class")      2 classes
are(1), have(2)        is, have
verb(1, "hold")        holds
"""


def count(n: int, what: str) -> str:
    """The number and what is counted, in its plural where it is not one."""
    return f"{n} {plural(n, what)}"


def plural(n: int, what: str) -> str:
    """What is counted, such as "image": images, classes."""
    if n == 1:
        return what
    return f"{what}es" if what.endswith("s") else f"{what}s"


def are(n: int) -> str:
    """`is` of one, `are` of more."""
    return "is" if n == 1 else "are"


def have(n: int) -> str:
    """`has` of one, `have` of more."""
    return "has" if n == 1 else "have"


def verb(n: int, what: str) -> str:
    """What one does, or more do, such as "hold": holds, hold."""
    return f"{what}s" if n == 1 else what
