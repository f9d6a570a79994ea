"""`cos demo`: the paper in small, end to end, on two CPU cores.

Scenes are made and annotated; the rows of CoS Table 3a are trained from one checkpoint with the same number of steps and answer
the same held-out questions. This package composes the stages; what happens in each is in its own module.

    arms.py     what is compared, and where each part of a run lies
    steps.py    one function a step, and which step waits for which
    work.py     runs the steps in worker processes; killed and started again, it goes on where it was
    results.py  the table, the differences, the labels against gold, and the page
    command.py  the command
"""
