"""The annotation store, an LMDB folder: annotations.py is what others use.

environment, codec     the LMDB environment and its bytes            check, merge   `cos store verify` and `merge`
statistics, ids        `cos store stats`, and ids for completion
"""
