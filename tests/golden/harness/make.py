"""Writes the files of this folder: answers as VLMEvalKit and lmms-eval keep them, and what their own code makes of them.

    python -m venv v && v/bin/pip install pandas==3.1.1 xlsxwriter openpyxl numpy
    v/bin/python tests/golden/harness/make.py SITE-PACKAGES

SITE-PACKAGES: where ms-vlmeval 0.0.20 and lmms-eval 0.7.3 are installed. Only single functions of theirs are run
(tests/reference/harness_source.py does the same). The data sets and answers are made up here; nothing is theirs.
"""

import ast
import hashlib
import json
import random
import re
import statistics
import string
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
GOLDEN = HERE.parent
SITE = Path(sys.argv[1])
RNG = random.Random(18)
YES_NO = ("Yes", "no", "yes.", "No, there is not.", "I cannot say", "Yes, and no", "NO", "y", "None", "")
WORDS = ("red", "Red.", "the dog", "two", "2", "unanswerable", "N/A", "yes", "a cat!", "None", "t-shirt", "five")
LETTERS = ("A", "B", "C", "D", "B.", "(A)", "The answer is C", "c", "I do not know", "E", "none of them", "")


class Silent:
    def __getattr__(self, name):
        return lambda *_, **__: None


def theirs(package, file, *names, **given):
    tree = ast.parse((SITE / package / file).read_text(encoding="utf-8"))
    def name(node):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return node.name
        return node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None
    def literal(node):
        try:
            return isinstance(node, ast.Assign) and (ast.literal_eval(node.value), True)[1]
        except ValueError:
            return False
    space = dict(given)
    kept = [node for node in tree.body if literal(node) or name(node) in names]
    exec(compile(ast.Module(kept, []), file, "exec"), space)
    return [space[each] for each in names]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# --- data sets ---

def pope():
    rows, number = {c: [] for c in ("adversarial", "popular", "random")}, 0
    for picture in range(6):
        for question in range(4):
            number += 1
            for place, category in enumerate(rows):
                real = question % 2 == 0
                thing = ("dog", "cup")[question // 2] if real else (("cat", "fork"), ("cat", "car"), ("bus", "fork"))[place][question // 2]
                rows[category].append({"question_id": number, "image": f"COCO_val2014_{picture:012d}.jpg",
                    "text": f"Is there a {thing} in the image?", "label": "yes" if real else "no"})
    for category, part in rows.items():
        write(HERE / f"data/pope/coco/coco_pope_{category}.json", "".join(json.dumps(row) + "\n" for row in part))
    return rows


def gqa():
    questions = {}
    for number in range(40):
        text = ("What color is it?", "Is it outdoors?", f"What is on table {number}?")[number % 3]
        questions[f"20{number:07d}"] = {"question": text, "answer": ("red", "yes", "cat")[number % 3], "imageId": f"n{number // 2}",
            "isBalanced": True, "groups": {"global": None}, "types": {"structural": "query", "semantic": "attr"}, "semantic": []}
    write(HERE / "data/gqa/testdev_balanced_questions.json", questions)
    return questions


def mmbench():
    rows = []
    for number in range(12):
        options = [f"thing {number}", "a tree", "the sea", "nothing"][: 2 if number % 4 == 3 else 4]
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            rows.append({"index": number + turn * 10**6, "question": "What is shown?" if number % 2 else f"What is at {number}?",
                "hint": "Look closely." if number % 3 == 0 else "", **dict(zip("ABCD", turned + [""] * 2)),
                "answer": "ABCD"[turned.index(options[0])], "category": ("color", "count")[number % 2], "image": "aGk=",
                "source": "x", "l2-category": ("coarse", "fine")[number % 3 == 0], "comment": "", "split": "dev"})
    frame = pd.DataFrame(rows)
    (HERE / "data/mmbench").mkdir(parents=True, exist_ok=True)
    frame.to_csv(HERE / "data/mmbench/mmbench_dev_20230712.tsv", sep="\t", index=False)
    return rows


# --- VLMEvalKit ---

[remove_marks] = theirs("vlmeval", "smp/misc.py", "process_punctuation")
[istype, listinstr, d2df] = theirs("vlmeval", "smp/misc.py", "istype", "listinstr", "d2df", pd=pd)
load = lambda f: pd.read_excel(f) if str(f).endswith("xlsx") else pd.read_csv(f, sep="\t") if str(f).endswith("tsv") else f
[yes_or_no, pope_rating, mme_rating] = theirs("vlmeval", "dataset/utils/yorn.py", "YOrN_Extraction", "POPE_rating", "MME_rating",
    process_punctuation=remove_marks, pd=pd, np=np, load=lambda f: f, d2df=d2df, defaultdict=defaultdict)


def vqa():
    source = (SITE / "vlmeval/dataset/utils/vqa_eval.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    wanted = ("process_line", "hit_calculate", "process_answer", "_process_digit_article")
    space = {"np": np, "istype": istype, "listinstr": listinstr, "process_punctuation": remove_marks}
    kept = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    exec(compile(ast.Module(kept, []), "vqa_eval.py", "exec"), space)
    return space["process_line"], space["hit_calculate"]


process_line, hit_calculate = vqa()
import copy, os
[infer_option, infer_text, can_infer] = theirs("vlmeval", "utils/matching_util.py", "can_infer_option", "can_infer_text", "can_infer",
    cp=copy, os=os, string=string, logger=Silent())
[report_acc, build_choices, prefetch_answer, prefetch_group, extract] = theirs("vlmeval", "dataset/utils/multiple_choice.py", "report_acc",
    "build_choices", "prefetch_answer", "prefetch_circular_group", "extract_answer_from_item", pd=pd, np=np, string=string,
    defaultdict=defaultdict, can_infer=can_infer, logger=Silent(), build_option_str=lambda choices: "", cn_string=lambda text: False,
    build_prompt=lambda *_: "", rd=random)


def keep(rows, name, form="xlsx"):
    """As `infer_data_job` dumps its frame."""
    path = HERE / f"vlmevalkit/ToyVLM_{name}.{form}"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    if form == "xlsx":
        frame.to_excel(path, index=False, engine="xlsxwriter")
    elif form == "tsv":
        frame.to_csv(path, sep="\t", index=False, encoding="utf-8", quoting=1)
    else:
        path.write_text(json.dumps(frame.to_dict("records"), indent=4, ensure_ascii=False), encoding="utf-8")
        return frame
    frame = load(path)
    frame["prediction"] = [str(x) for x in frame["prediction"]]
    return frame


def first_row(frame):
    return {key: (float(value) if isinstance(value, (int, float, np.number)) else value) for key, value in dict(frame.iloc[0]).items()}


def vlmevalkit(questions):
    results = {}
    merged = {}
    for category, rows in questions["pope"].items():
        for row in rows:
            merged.setdefault((row["image"], row["text"]), {**row, "category": []})["category"].append(category)
    frame = keep([{"index": n, "question": row["text"], "answer": row["label"].title(), "category": ",".join(row["category"]),
        "prediction": RNG.choice(YES_NO)} for n, row in enumerate(merged.values())], "POPE")
    frame["extracted"] = [yes_or_no(x) for x in frame["prediction"]]
    frame["score"] = frame["answer"] == frame["extracted"]
    table = pope_rating(frame)
    results["pope"] = {row["split"]: {k: float(row[k]) for k in ("Overall", "acc", "precision", "recall")} for row in table.to_dict("records")}

    rows = []
    for folder in sorted((GOLDEN / "mme/MME_Benchmark_release_version").iterdir()):
        for path in sorted(folder.rglob("*.txt")):
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    question, answer = line.rsplit("\t", 1)
                    rows.append({"index": len(rows), "category": folder.name, "image_path": f"{folder.name}/{path.stem}.jpg",
                        "question": question.strip(), "answer": answer.strip().title(), "prediction": RNG.choice(YES_NO)})
    frame = keep(rows, "MME", "tsv")
    frame["extracted"] = [yes_or_no(x) for x in frame["prediction"]]
    frame["score"] = frame["answer"] == frame["extracted"]
    results["mme"] = first_row(mme_rating(frame))

    frame = keep([{"index": int(key), "question": row["question"], "answer": row["answer"], "prediction": RNG.choice(("red", " Red", "yes", "cat", "cat."))}
        for key, row in questions["gqa"].items()], "GQA_TestDev_Balanced")
    hits = [process_line(frame.iloc[i], "accuracy") for i in range(len(frame))]
    results["gqa"] = {"Overall": float(np.mean(hit_calculate(hits, "GQA_TestDev_Balanced")) * 100)}

    for name, file, key in (("textvqa", "textvqa/TextVQA_0.5.1_val.json", "TextVQA_VAL"), ("vizwiz", "vizwiz/val.json", "VizWiz")):
        data = json.loads((GOLDEN / file).read_text(encoding="utf-8"))
        data = data["data"] if isinstance(data, dict) else data
        rows = []
        for n, row in enumerate(data):
            ten = [a if isinstance(a, str) else a["answer"] for a in row["answers"]]
            rows.append({"index": row.get("question_id", n), "question": row["question"], "answer": str(ten),
                "prediction": RNG.choice((*ten, *WORDS))} | ({"image_path": row["image"]} if name == "vizwiz" else {}))
        frame = keep(rows, key)
        hits = [process_line(frame.iloc[i], "vqa_score") for i in range(len(frame))]
        results[name] = {"Overall": float(np.mean(hit_calculate(hits, key)) * 100)}

    rows = [{k: v for k, v in row.items() if k != "image"} | {"prediction": RNG.choice((row["answer"],) * 20 + LETTERS)} for row in questions["mmbench"]]
    frame = keep(rows, "MMBench_DEV_EN").sort_values(by="index")
    frame["GT"], frame["g_index"] = frame["answer"], frame["index"] % 10**6
    main = frame[frame["index"] == frame["g_index"]].copy()
    main["hit"] = [(prefetch_group(frame[frame["g_index"] == index]) or {"hit": 0})["hit"] for index in main["index"]]
    results["mmbench"] = first_row(report_acc(main))

    problems = json.loads((GOLDEN / "scienceqa/problems.json").read_text(encoding="utf-8"))
    rows = []
    for pid, row in problems.items():
        if row["image"]:
            rows.append({"index": len(rows), "question": row["question"], "hint": row["hint"] or None, **dict(zip("ABCDE", row["choices"])),
                "answer": "ABCDE"[row["answer"]], "category": row["topic"], "prediction": RNG.choice((*row["choices"], *LETTERS))})
    results["scienceqa"] = {"Overall": vanilla(keep(rows, "ScienceQA_TEST", "json"))}

    seed = json.loads((GOLDEN / "seed/SEED-Bench.json").read_text(encoding="utf-8"))["questions"]
    rows = [{"index": n, "question_id": row["question_id"], "question": row["question"], **{l: row[f"choice_{l.lower()}"] for l in "ABCD"},
        "answer": row["answer"], "category": "x", "prediction": RNG.choice((row["choice_a"], *LETTERS))}
        for n, row in enumerate(r for r in seed if r["data_type"] == "image")]
    results["seed"] = {"Overall": vanilla(keep(rows, "SEEDBench_IMG"))}
    return results


def vanilla(frame):
    frame["prediction"] = [str(x) for x in frame["prediction"]]
    hits = [extract(None, frame.iloc[i], "x")["opt"] == frame.iloc[i]["answer"] for i in range(len(frame))]
    return float(np.mean(hits))


# --- lmms-eval ---

def samples(task, rows, process, old=False):
    """As `_process_document_results` and `save_results_samples` write them; the metrics of each."""
    lines, metrics = [], []
    for number, (doc, target, prompt, answer) in enumerate(rows):
        hashed = hashlib.sha256(json.dumps(doc, indent=2, ensure_ascii=False).encode()).hexdigest()
        found = process(copy.deepcopy(doc), [answer])
        metrics.append(found)
        line = {"doc_id": number, "doc": doc, "target": target, "arguments": [prompt, {"max_new_tokens": 16}], "resps": [[answer]],
            "filtered_resps": [answer], "doc_hash": hashed, **found}
        if not old:
            line = {"doc_id": number, "target": str(target), "filtered_resps": answer, "token_counts": [None], "doc_hash": hashed, **found, "input": prompt}
        lines.append(line)
    if old:
        write(HERE / f"lmms-eval/{task}.json", {"args": {"model": "toy", "model_args": "pretrained=toy/model"}, "model_configs": {}, "logs": lines, "time": "0601_1200"})
    else:
        write(HERE / f"lmms-eval/toy__model/20260601_120000_samples_{task}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return metrics


def column(metrics, name):
    return [each[name] for each in metrics if name in each]


def lmms_eval(questions):
    results = {}
    short = "\nAnswer the question using a single word or phrase."
    letter = "\nAnswer with the option's letter from the given choices directly."
    names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
    [process, *totals] = theirs("lmms_eval", "tasks/pope/utils.py", "pope_process_results", *(f"pope_aggregate_{name}" for name in names))
    rows = [({"question_id": str(row["question_id"]), "question": row["text"], "answer": row["label"], "category": category}, row["label"],
        row["text"] + short, RNG.choice(YES_NO)) for category, part in questions["pope"].items() for row in part]
    metrics = samples("pope", rows, process)
    results["pope"] = {f"pope_{name}": total(column(metrics, f"pope_{name}")) for name, total in zip(names, totals)}

    [match] = theirs("lmms_eval", "api/metrics.py", "exact_match_hf_evaluate", np=np, re=re, string=string)
    rows = [({"id": key, "question": row["question"], "answer": row["answer"], "imageId": row["imageId"]}, row["answer"], row["question"] + short,
        RNG.choice(("red", "Red.", "yes", "cat", "re-d"))) for key, row in questions["gqa"].items()]
    found = lambda doc, said: {"exact_match": float(match([said[0]], [doc["answer"]], ignore_case=True, ignore_punctuation=True)["exact_match"])}
    results["gqa"] = {"exact_match": statistics.mean(column(samples("gqa", rows, found), "exact_match"))}

    [processor] = theirs("lmms_eval", "tasks/_task_utils/vqa_eval_metric.py", "EvalAIAnswerProcessor", re=re)
    for name, file, task, util in (("textvqa", "textvqa/TextVQA_0.5.1_val.json", "textvqa_val", "textvqa"), ("vizwiz", "vizwiz/val.json", "vizwiz_vqa_val", "vizwiz_vqa")):
        [process] = theirs("lmms_eval", f"tasks/{util}/utils.py", f"{util}_process_results", EvalAIAnswerProcessor=processor, statistics=statistics)
        data = json.loads((GOLDEN / file).read_text(encoding="utf-8"))
        data = data["data"] if isinstance(data, dict) else data
        rows = []
        for row in data:
            ten = [a if isinstance(a, str) else a["answer"] for a in row["answers"]]
            doc = {"question_id": row.get("question_id", Path(row.get("image", "")).stem), "question": row["question"], "answers": ten}
            extra = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." if name == "vizwiz" else ""
            rows.append((doc, "answer", row["question"].capitalize() + extra + short, RNG.choice((*ten, *WORDS))))
        results[name] = {"exact_match": statistics.mean(column(samples(task, rows, process), "exact_match"))}

    [process, total, *_] = theirs("lmms_eval", "tasks/mme/utils.py", "mme_process_results", "mme_aggregate_results", "parse_pred_ans", defaultdict=defaultdict, eval_logger=Silent())
    space = {"defaultdict": defaultdict, "eval_logger": Silent()}
    rows = []
    for folder in sorted((GOLDEN / "mme/MME_Benchmark_release_version").iterdir()):
        for path in sorted(folder.rglob("*.txt")):
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    question, answer = line.rsplit("\t", 1)
                    question = question.strip()
                    doc = {"question_id": f"{folder.name}/{path.stem}.png", "question": question, "answer": answer.strip().title(), "category": folder.name}
                    rows.append((doc, doc["answer"], question.replace(" Please answer yes or no.", "") + short, RNG.choice(YES_NO)))
    metrics = samples("mme", rows, process, old=True)
    results["mme"] = {name: total(column(metrics, name)) for name in ("mme_perception_score", "mme_cognition_score")}

    [process] = theirs("lmms_eval", "tasks/scienceqa/utils.py", "sqa_process_results", "sqa_doc_to_target")[:1]
    problems = json.loads((GOLDEN / "scienceqa/problems.json").read_text(encoding="utf-8"))
    rows = []
    for row in problems.values():
        if row["image"]:
            options = "\n".join(f"{l}. {c}" for l, c in zip("ABCDE", row["choices"]))
            context = f"Context: {row['hint']}\n" if row["hint"] else ""
            doc = {k: row[k] for k in ("question", "choices", "answer", "hint")}
            rows.append((doc, "ABCDE"[row["answer"]], f"{context}{row['question']}\n{options}{letter}", RNG.choice(LETTERS)))
    results["scienceqa"] = {"exact_match": statistics.mean(column(samples("scienceqa_img", rows, process), "exact_match"))}

    [process, total] = theirs("lmms_eval", "tasks/seedbench/utils.py", "seed_process_result", "seed_aggregation_result")
    seed = json.loads((GOLDEN / "seed/SEED-Bench.json").read_text(encoding="utf-8"))["questions"]
    rows = []
    for row in seed:
        options = "\n".join(f"{l}. {row[f'choice_{l.lower()}']}" for l in "ABCD")
        rows.append((row, row["answer"], f"{row['question']}\n{options}{letter}", RNG.choice(LETTERS)))
    metrics = samples("seedbench", rows, process)
    results["seed"] = {name: total(column(metrics, name)) for name in ("seed_image", "seed_video", "seed_all")}

    [evaluator] = theirs("lmms_eval", "tasks/mmbench/mmbench_evals.py", "MMBench_Evaluator", string=string, os=os, pd=pd, rd=random, math=__import__("math"), eval_logger=Silent())
    judge = evaluator()
    [process] = theirs("lmms_eval", "tasks/mmbench/en_utils.py", "mmbench_process_results")
    rows = []
    for row in questions["mmbench"]:
        doc = {("L2-category" if k == "l2-category" else k): (v if v != "" else "nan") for k, v in row.items() if k != "image"}
        prompt, _ = judge.create_options_prompt(doc, list("ABCDE"))
        hint = f"{doc['hint']} " if doc["hint"] != "nan" else ""
        rows.append((doc, doc["answer"], f"{hint}{doc['question']} {prompt}{letter}", RNG.choice((row["answer"],) * 20 + LETTERS)))
    metrics = samples("mmbench_en_dev_static", rows, process)
    answers = column(metrics, "gpt_eval_score")
    [extract_mcq] = theirs("lmms_eval", "tasks/_task_utils/mcq_extract.py", "extract_mcq_answer", List=list, Optional=__import__("typing").Optional)
    sys.modules["lmms_eval.tasks._task_utils.mcq_extract"] = type(sys)("m")
    sys.modules["lmms_eval.tasks._task_utils.mcq_extract"].extract_mcq_answer = extract_mcq
    for part in ("lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks._task_utils"):
        sys.modules[part] = type(sys)(part)
    overall, *_ = judge.eval_result(answers, "static")
    results["mmbench"] = {"gpt_eval_score": float(overall) * 100}
    write(HERE / "lmms-eval/toy__model/20260601_120000_results.json", {"results": results, "model_name": "toy/model", "model_name_sanitized": "toy__model"})
    return results


made = {"pope": pope(), "gqa": gqa(), "mmbench": mmbench()}
write(HERE / "expected.json", {"VLMEvalKit": vlmevalkit(made), "lmms-eval": lmms_eval(made)})
