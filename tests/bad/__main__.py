import importlib, sys, tempfile, time, traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bad.world import make_world
from bad.run import call

only = sys.argv[1:]
with tempfile.TemporaryDirectory(prefix="bad") as t:
    w = make_world(Path(t) / "world")
    n = 0
    for m in only:
        for c in importlib.import_module("bad." + m).CASES:
            n += 1
            f = Path(t) / f"c{n}"
            f.mkdir()
            t0 = time.process_time()
            try:
                o = call(c, w, f)
            except Exception as e:
                traceback.print_exc()
                print("HARNESS", c, e)
                continue
            ok = o.code == c.code and c.said in o.err and c.names in o.err and "Traceback" not in o.err
            print(f'{time.process_time()-t0:.2f}' if time.process_time()-t0>.15 else '', "ok " if ok else "BAD", o.code, str(c)[:60], "|", o.sentence.replace(t, "")[:200], "|", o.kept[:3])
            if not ok:
                print("      ALL:", o.err[-1500:].replace(t, ""))
            bad = [p for p in o.touched.written if not p.is_relative_to(f) and str(p) != "/dev/null"]
            rd = [
                p for p in o.touched.read if p.is_relative_to(t) and not p.is_relative_to(f) and not p.is_relative_to(w.root)
            ] + [p for p in o.touched.read if p.is_relative_to(w.secret)]
            if bad or rd or o.touched.beyond:
                print("      TOUCHED", bad, rd, o.touched.beyond)
