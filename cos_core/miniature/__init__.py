"""A LLaVA small enough for two CPU cores, and scenes on which Chain-of-Spot shows.

scenes.py     draws scenes and asks questions about them (no torch)
checkpoint/   the model, made by scripts/pretrain_miniature.py of the source repository
"""
