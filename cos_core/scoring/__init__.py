"""From answers to scores: extraction, metrics, intervals, comparisons, statistics of boxes. No I/O but reading scores.

answers, metrics       the answer in a text, and its score
statistics, comparison   a score's interval, and the difference of two
columns, recorded      questions, scores and answers by the million
box_tally              statistics of any number of boxes
"""

from __future__ import annotations

REPLICATES = 2000
"""Bootstrap samples behind every interval, by default."""
