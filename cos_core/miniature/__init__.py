"""A LLaVA small enough for two CPU cores, and scenes on which Chain-of-Spot shows.

scenes.py       draws scenes and asks questions about them (no torch)
vocabulary.py   the tokenizer
pretrain.py     makes the checkpoint, from random weights; run once, its result ships in checkpoint/
"""
