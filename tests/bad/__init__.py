"""Bad inputs: one `Case` for each thing that can be wrong with what a command is given, and what must come of it.

A module a family; `ALL` has them all. `world` makes the good things that stand beside the bad one, `run` runs a case and
watches what it touches. tests/test_hostile_inputs.py asserts, benchmarks/faults.py writes the table docs/faults.md.
"""
