"""Colours by what they stand for, in light and dark; the page's style sheet is made from these.

Told apart by who is colour-blind (after Okabe & Ito 2008), with a contrast of 3:1 or more against
either background; nothing is said by colour alone.
"""

from typing import NamedTuple


class Tone(NamedTuple):
    """One colour.

    Attributes:
        light: On the light page, `#rrggbb`.
        dark: On the dark page.
    """

    light: str
    dark: str


# By name; in the page each is the CSS variable `--name`. No two share a light colour: an inline
# figure's colours are found by it.
PALETTE = {
    "paper": Tone("#ffffff", "#14171c"),
    "panel": Tone("#f5f6f8", "#1c2027"),
    "ink": Tone("#1a1d23", "#e8eaee"),
    "soft": Tone("#5a6270", "#a3abb8"),
    "line": Tone("#d5d9e0", "#3a414d"),
    "original": Tone("#1f2a44", "#d9dfeb"),
    "variant": Tone("#0069b4", "#5ab4f0"),
    "pair": Tone("#b35900", "#f0a04b"),
    "together": Tone("#a3195b", "#f07fb2"),
    "blind": Tone("#767d88", "#8f97a3"),
    "member": Tone("#b34000", "#f28c52"),
    "nonmember": Tone("#2b6f9e", "#6cb4e4"),
    "good": Tone("#1b7a4b", "#5cc894"),
    "warn": Tone("#8a6100", "#e2b23e"),
    "bad": Tone("#b3261e", "#f2857d"),
}
