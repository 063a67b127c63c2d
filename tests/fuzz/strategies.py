"""Inputs as hypothesis draws them: valid ones made wrong, and bytes of any kind."""

import random
from functools import cache

from hypothesis import strategies as st

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS


@cache
def _seeds(name: str) -> list[bytes]:
    return TARGETS[name].seeds()


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Inputs for a target by its name."""
    seeds, kind = _seeds(name), TARGETS[name].kind
    # A number for the draws, and not the draws themselves: there are too many to be kept.
    wrong = st.builds(
        lambda seed, number: mutated(seed, random.Random(number), kind, seeds),
        st.sampled_from(seeds),
        st.integers(0, 2**32 - 1),
    )
    return st.one_of(wrong, wrong, wrong, st.binary(max_size=200))
