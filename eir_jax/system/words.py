"""Numbers in sentences."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return '1 run', '2 runs', '1,000 embeddings': a number with its noun."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
