"""Benchmarks: one module each, its file name is its name (see plug.py).

A module offers `build()`, with optional `split` and `scorer` (names, None for the usual one), that returns an object with
`name`, `summary`, `load`, `score` and `metrics` (interfaces.Benchmark). More is used where it is there:

  headline, unit            path of the one number that stands for the benchmark ("mean_f1"; else "accuracy") and its unit
                            ("fraction", "percent" or "points"; else "fraction")
  estimates(data, scores)   the aggregates that get an interval (metrics.Estimate; else the mean value as "accuracy")
  same_question(id)         one id for all spellings of an official question id, or of an example's (MME)
  folders                   what others call the benchmark's folder (LLaVA's `seed_bench`)
  asked(prompt)             the question inside a recorded prompt, compared with `meta["asked"]` where question ids repeat
  protocol(predictions)     what the recorded prompts say about how the run was made (TextVQA: OCR tokens or not)
  submission(root, data, predictions)  the text of the file that a server scores, complete or refused (InputError)

  needs, counts, scorers    what to download (_files.Need), how many questions each official split has, the scorers there are
  unpack(root)              makes pictures that stand inside the files into files, before a model runs; words for what is wrong
  judge_prompt(), judge_sample(example, answer), judge_grade(reply), judged(data, predictions, grades)
                            answers that a language model grades (evaluate/judge.py)

Where labels are not public, `score` gives no scores and `metrics` {"server_scored": True}.

Examples: `id` is unique and stable; `meta["question_id"]` is the official id when it differs; `meta["asked"]` the question
without its format suffix; `meta["repeats"]` the example whose official row this one is, once more (SEED-Bench). `score` gives
one Score per example, in order, missing answers included (metrics.judge does). A rule says with `Verdict.read` whether an
answer named anything that can be an answer; those that do not are counted beside the score.
"""
