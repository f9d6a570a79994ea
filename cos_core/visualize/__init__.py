"""Pictures of finished work. Computes no score and needs no torch.

overlay, draw, heat     one picture with its boxes and map             boxes, plots    statistics of regions, drawn
runs, source, select    finished runs and stores, read and narrowed    compare         contact sheets of two runs
run_report, run_sections, gallery   the page of scored runs            export          a run for other viewers
demo_page, demo_records, demo_sections   the page of `cos demo`        html            what both pages are made of
loss    the curve of a training
"""
