"""Benchmarks: one module each, its file name is its name (see plug.py).

A module offers `build()`, with optional `split` and `scorer` (names, None for the usual one), that returns an
interfaces.Benchmark: required are `name`, `load`, `score` and `metrics`, all else has a default there. `_sliced` has the common
shape: one rule, accuracy in percent, slices.

Examples: `id` is unique and stable; types.Example says what `question_id`, `asked`, `suffix` and `repeats` are. `score` gives
one Score per example, in order, missing answers included (metrics.judge does). A rule says with `Verdict.read` whether an
answer named anything that can be an answer; those that do not are counted beside the score.
"""
