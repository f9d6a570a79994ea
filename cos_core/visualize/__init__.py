"""Pictures of finished work: overlays, statistics of boxes, and the demo's page. Computes no score and needs no torch."""
