"""Pictures of finished work. Computes no score and needs no torch.

config                              the settings of every command
overlay, draw, relevance_maps       one picture with its boxes and its relevance map
boxes, plots                        statistics of regions, as numbers and as plots
runs, run_questions, select         finished runs, one question in one run, and the questions that are shown
source                              the regions of a store or a predictions file, one at a time
run_report, run_sections            the page of finished runs, and its tables; cos_core/demo adds a story
report_cards, gallery, html         its cards, the gallery that holds them, and the parts of the page
contact_sheets                      the same questions in two runs, for a paper
export                              a run for other viewers
loss                                the curve of a training
"""
