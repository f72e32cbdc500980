"""Fuzzing: any text, answer, message or row, and what must hold whatever it is.

A target (`target.py`) is one property and the inputs it is asked with. Two drivers use it: the suite, by Hypothesis and
a bounded number of cases (`test_targets.py`); and `python -m tests.fuzz`, by atheris, which follows the coverage for as
long as it is told. What either of them finds is kept in the target's `found`, smallest input first.
"""
