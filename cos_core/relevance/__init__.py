"""Relevance of an answer to what was seen: propagation/ (CoS Eq. 4-6), coattention, maps (heat), regions (roi).

Importing this package imports no torch; propagation and coattention do.
"""
