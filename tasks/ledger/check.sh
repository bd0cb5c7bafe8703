#!/bin/sh
set -eu
python3 -m unittest discover -q -s tests -t .
python3 - <<'PYTHON'
import json
import os
import resource
import signal
import tempfile

from money.ledger import Ledger

folder = tempfile.mkdtemp()
path = os.path.join(folder, "journal")
ledger = Ledger(path)
for cents in (100, 20, 3):
    ledger.transfer("ann", "böb", cents)
whole = open(path, "rb").read()
ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
for cut in range(len(whole) + 1):
    open(path, "wb").write(whole[:cut])
    lines = sum(end <= cut for end in ends)
    ledger = Ledger(path)
    assert ledger.balance("böb") == sum((100, 20, 3)[:lines]), cut
    ledger.transfer("ann", "böb", 7)
    again = Ledger(path)
    assert again.balance("böb") == ledger.balance("böb") == sum((100, 20, 3)[:lines]) + 7, cut
open(path, "wb").write(b"{broken\n" + whole)
try:
    Ledger(path)
    raise SystemExit("a broken line in the middle was accepted")
except ValueError:
    pass
open(path, "wb").write(whole)
ledger = Ledger(path)
for cents in (0, -1):
    try:
        ledger.transfer("ann", "bob", cents)
        raise SystemExit("an amount that is not positive was accepted")
    except ValueError:
        pass
assert open(path, "rb").read() == whole
# A full disk: files may not grow any further.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, most))
try:
    ledger.transfer("ann", "böb", 5)
    raise SystemExit("it was written to a full disk")
except OSError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert ledger.balance("böb") == Ledger(path).balance("böb") == 123
os.remove(path)
os.rmdir(folder)
PYTHON
