"""Broken builds: each has one defect, made from outside, and must be caught by the check that is meant for it.

    python -m tests.chaos.variants early-delete dramatiq app.actors ...

patches production code and becomes the program that is named. A proof that nothing would fail is none.
"""
