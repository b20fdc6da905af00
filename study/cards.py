"""How much memory cards have, so that a budget may be a card's name; free of torch."""

import difflib
import re

SHARE_OF_CARD = 0.9
"""Share of a card's memory that a study takes by default: CUDA and the driver need the rest."""

# Card -> GB of its name -> GiB that torch reports; driver and ECC move that by a percent or two.
_CARDS = {
    "T4": {16: 14.6},
    "P100": {16: 15.9},
    "V100": {16: 15.8, 32: 31.7},
    "A10": {24: 22.0},
    "A10G": {24: 22.0},
    "A30": {24: 23.5},
    "A40": {48: 44.4},
    "A100": {40: 39.4, 80: 79.2},
    "L4": {24: 22.0},
    "L40": {48: 44.4},
    "L40S": {48: 44.4},
    "H100": {80: 79.1},
    "H100 NVL": {94: 93.1},
    "H200": {141: 139.8},
    "B200": {180: 178.3},
    "RTX 2080 Ti": {11: 10.7},
    "RTX 3060": {8: 7.8, 12: 11.7},
    "RTX 3070": {8: 7.8},
    "RTX 3080": {10: 9.8, 12: 11.7},
    "RTX 3090": {24: 23.7},
    "RTX 4060": {8: 7.8},
    "RTX 4060 Ti": {8: 7.8, 16: 15.6},
    "RTX 4070": {12: 11.6},
    "RTX 4080": {16: 15.7},
    "RTX 4090": {24: 23.6},
    "RTX 5070": {12: 11.5},
    "RTX 5080": {16: 15.5},
    "RTX 5090": {32: 31.4},
    "RTX A4000": {16: 15.7},
    "RTX A5000": {24: 23.7},
    "RTX A6000": {48: 47.5},
    "RTX 6000 Ada": {48: 47.5},
    "RTX PRO 6000": {96: 95.0},
}


def card_memory(name: str) -> int:
    """Bytes of a card's memory, about as torch reports them.

    Args:
        name: Such as `RTX 4090`, `A100-40GB` or what torch calls a card, `NVIDIA H100 80GB HBM3`.

    Raises:
        ValueError: No card is known by that name, or it is made with several sizes of memory.
    """
    cards = {_key(card): card for card in _CARDS}
    sized = {
        _key(f"{card}-{size}GB"): (card, size) for card, sizes in _CARDS.items() for size in sizes
    }
    key = _key(name)
    if key in sized:
        card, size = sized[key]
        return int(_CARDS[card][size] * 2**30)
    if key in cards:
        card = cards[key]
        sizes = _CARDS[card]
        if len(sizes) == 1:
            return int(next(iter(sizes.values())) * 2**30)
        written = " or ".join(f"{card}-{size}GB" for size in sizes)
        raise ValueError(f"this card is made with several sizes of memory; write {written}")
    names = {_key(shown): shown for shown in _names()}
    near = [names[match] for match in difflib.get_close_matches(key, names, n=3)]
    raise ValueError(
        "no card of that name is known; "
        + (f"the nearest are {', '.join(near)}; " if near else "")
        + "write a size such as 24GiB, or a share such as 90%"
    )


def _names() -> list[str]:
    """Every name that needs nothing more."""
    return [
        card if len(sizes) == 1 else f"{card}-{size}GB"
        for card, sizes in _CARDS.items()
        for size in sizes
    ]


def _key(name: str) -> str:
    """What is left of a name without spaces, makers, series and the shape of the board."""
    bare = re.sub(r"[\s_-]+", "", name.lower())
    bare = re.sub(r"^(nvidia|geforce|tesla|quadro|rtx)+", "", bare)
    return re.sub(r"sxm\d?|pcie|hbm\d?e?|generation", "", bare)
