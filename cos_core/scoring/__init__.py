"""From answers to scores and what they are worth: extraction, metrics, intervals, comparisons, statistics of boxes. Pure.

answers, metrics       what an answer says, and what it scores
statistics, comparison   how sure a score is, and a difference of two
columns, recorded      questions, scores and answers by the million
box_tally              statistics of any number of boxes
"""

from __future__ import annotations

REPLICATES = 2000
"""Bootstrap samples behind every interval, unless another number is asked for."""
