"""Stands in for the process of a run: `FOLDER --metric NAME`. The learning rate in the config selects what it does."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

folder = Path(sys.argv[1])
cfg = yaml.safe_load((folder / "config.yaml").read_text())
status = json.loads((folder / "status.json").read_text())
with open(folder.parents[1] / "order.txt", "a") as file:
    file.write(f"{folder.parent.name} {cfg['SEED']} {os.environ.get('OMP_NUM_THREADS')}\n")
behaviour = cfg["SOLVER"]["BASE_LR"]
print("the last words", flush=True)
if behaviour == 1.0:
    status |= {"state": "done", "metrics": {"bbox/AP": 10.0 + cfg["SEED"]}, "iterations": cfg["SOLVER"]["MAX_ITER"]}
elif behaviour == 2.0:
    status |= {"state": "diverged", "reason": "iteration 7: loss is not finite", "iterations": 7}
elif behaviour == 3.0:
    os.kill(os.getpid(), signal.SIGKILL)
elif behaviour == 4.0:
    (folder / "metrics.json").write_text('{"iteration": 19}\n{"iterat')
    sys.exit(3)
elif behaviour == 5.0 and not (folder / "checkpoint").exists():
    (folder / "checkpoint").touch()
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
else:
    status |= {"state": "done", "metrics": {"bbox/AP": 50.0}, "iterations": 1}
status["seconds"] += 1.0
(folder / "status.json").write_text(json.dumps(status))
