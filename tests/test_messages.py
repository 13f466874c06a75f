"""The pattern by which tests ask what an error names."""

import re

import pytest
from messages import names

SAID = "cell has shape (2, 2), expected (3, 3): give kT=0.0258,\nat step 42 of self.n_steps=7"


@pytest.mark.parametrize(
    "facts", [["(2, 2)", "(3, 3)"], ["(3, 3)", "(2, 2)"], ["42"], ["kT=0.0258"], ["n_steps=7"]]
)
def test_facts_in_any_order(facts):
    assert re.search(names(*facts), SAID)


@pytest.mark.parametrize(
    "facts", [["(2, 2)", "(4, 4)"], ["4"], ["kT=0.02"], ["0258"], ["steps=7"], ["(2. 2)"]]
)
def test_a_fact_that_is_not_there_or_in_part_only(facts):
    assert not re.search(names(*facts), SAID)


def test_no_facts():
    with pytest.raises(ValueError, match="every message"):
        names()
