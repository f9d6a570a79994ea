"""What a model is told and what it says: prompts, boxes as text, token ids, and the crop of the second pass."""
