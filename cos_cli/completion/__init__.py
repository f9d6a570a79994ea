"""Completion for bash, zsh and fish.

The scripts in completions/ pass the words of the command line to `cos __complete` (`answer`), which looks the command up in
completions/commands.tsv, a table that `table` writes from the CLI, and asks `values` for what can only be known now. Neither
imports Typer, numpy or torch.
"""
