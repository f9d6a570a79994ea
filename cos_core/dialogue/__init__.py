"""Dialogues with a model: prompts, boxes as text, token ids, and the crop of the second pass."""
